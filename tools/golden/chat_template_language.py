"""Small templates, one feature of the Jinja language (or of Python's types behind it) each."""

CONTEXT = {
    "name": "World", "empty": "", "zero": 0, "one": 1, "neg": -7, "pi": 3.14159, "yes": True, "no": False, "nil": None,
    "ko": "안녕 하세요", "mixed": "aé한\U0001f600z", "words": "the quick  brown\tfox", "lines": "a\nb\r\nc\n",
    "html": "<b>\"x\" & 'y'</b>", "list": [3, 1, 2], "strs": ["b", "A", "c", "a"], "nested": [[1, 2], [3, [4]]],
    "users": [{"name": "Bob", "age": 30, "admin": True}, {"name": "alice", "age": 25}, {"name": "Carl", "age": 30}],
    "d": {"b": 1, "a": "x", "c": None, "items": "key", "_u": 5}, "many": {str(i): i for i in range(20)},
    "floats": [0.1, 1.0, 1e16, 1e-5, 123456789.125, -0.0, 1e22, 2.5], "big": 9007199254740993,
}

EXPRESSIONS = """
1 + 2 * 3
(1 + 2) * 3
7 // 2
-7 // 2
7 // -2
7 % 3
-7 % 3
7 % -3
7.5 // 2
-7.5 // 2
-7.5 % 2
7.5 % -2
2 ** 10
2 ** -1
2 ** 3 ** 2
-2 ** 2
7 / 2
6 / 2
1_000 + 0x1F + 0b101 + 0o17
1e3
1.5e-7
1_0.2_5
0.1 + 0.2
1e16
1e15
123456789012345680.0
1e-4
1e-5
-0.0
1 == 1.0
true == 1
1 < 2 < 3
1 < 2 > 3
3 >= 3 >= 2
'a' < 'b'
'한' > 'a'
[1, 2] < [1, 3]
[1, 2] == [1, 2]
(1, 2) == [1, 2]
{'a': 1} == {'a': 1.0}
none == none
undefined_a == undefined_b
undefined_a == none
1 in list
5 not in list
'x' in 'xyz'
'b' in d
'q' in d
1 in undefined_thing
'a' in none
1 in 'abc'
2 in (1, 2)
2 in range(3)
'b' in d.keys()
'x' in d.values()
not true
not not ''
yes and name
no or name
nil or empty or 0
yes and no or 'x'
name if yes
name if no
name if no else 'other'
(name if no) is defined
'a' if no else 'b' if no else 'c'
name ~ 1 ~ none ~ true ~ 2.0 ~ [1, 'x']
'a' 'b' "c"
'a' + 'b'
'a' + 1
1 + 'a'
[1] + [2, 3]
(1,) + (2,)
[1] + (2,)
'ab' * 3
3 * 'ab'
'ab' * 0
[0] * 3
(1, 'a') * 2
'ab' * -1
-neg
+neg
-name
'%s is %d' % ('x', 5)
'%5d|%-5d|%05d|%+d|% d' % (1, 2, 3, 4, 5)
'%.2f|%8.3f|%e|%g|%G' % (pi, pi, pi, pi, 0.00001)
'%x|%X|%#x|%o|%c|%%' % (255, 255, 255, 8, 'z')
'%s' % list
'%s %s' % (1,)
'%s' % (1, 2)
'%(a)s-%(b)d' % {'a': 'x', 'b': 3}
'%r' % 'x'
'%.3s|%10s|%-10s|' % ('abcdef', 'r', 'l')
'%*d' % (5, 3)
'%d' % 3.99
'%d' % '3'
'%q' % 1
name[0]
name[-1]
name[10]
name[1:3]
name[::-1]
name[-3:]
name[:-1]
name[::2]
name[4:1:-1]
mixed[1]
mixed[3]
mixed[::-1]
mixed[1:4]
mixed|length
ko|length
ko[2:]
list[0]
list[-1]
list[9]
list[::-1]
list[1:]
list[:2]
list['x']
list[true]
nested[1][1][0]
nested.1.0
range(5)[2]
range(10)[2:8:2]|list
range(3)
range(0, 10, 3)|list
range(5, 0, -2)|list
range(3)|length
range(1, 2, 0)
range(200000)
range(2)[5]
list[::0]
d[1:2]
nil[0]
nil.x
nil.x.y
nothing
nothing.x
nothing[0]
nothing()
nothing + 1
nothing|upper
nothing|length
nothing|list
d.b
d['a']
d.items
d['items']
d.nope
d._u
d.nope.x
d.get('a')
d.get('q')
d.get('q', 5)
d.get()
d.get('a', default=1)
d.keys()
d.values()
d.items()
d.items()|list
d.keys()|list
d.keys()|length
d.items()[0]
d.copy()
d.__class__
d['__class__']
d.pop
d.pop('a')
list.append
list.append(1)
list.sort()
list.index(1)
list.index(9)
list.count(3)
list.copy()
many
many|length
many['15']
many.get('7')
{'a': 1, 'b': [1, {'c': none}], 3: 4.5, none: true, (1, 2): 'x'}
{'a': 1, 'a': 2}
{1: 'a', true: 'b', 1.0: 'c'}
{[1]: 2}
{}
[]
()
(1,)
(1)
[1, 'a', "it's", 'q"q', 'b\\\\n', '\\n\\t\\r\\x00\\x7f', none, true, 1.0]
['é한', '\\u200b', '\\xa0', '\U0001f600']
"it's"
'\\x41\\u00e9\\101\\q'
'\\é'
floats
big
big + 1
big == 9007199254740992.0
big > 9007199254740992.0
name.upper()
name.lower()
'hELLO wORLD'.title()
'hELLO wORLD'.capitalize()
'hELLO'.swapcase()
'Straße'.upper()
'ΑΣ ΑΣΑ'.lower()
'ﬁx'.title()
'Straße'.casefold()
'  x '.strip()
'\\u3000x\\u00a0'.strip()
'xxyxx'.strip('x')
'xxyxx'.lstrip('x')
'xxyxx'.rstrip('x')
'abcba'.strip('ab')
'  x '.lstrip() + '|'
'  x '.rstrip() + '|'
'x'.strip(none)
'a,b,,c'.split(',')
'a,b,,c'.split(',', 1)
'a,b,,c'.rsplit(',', 1)
words.split()
words.split(none, 1)
words.rsplit(none, 2)
words.split(maxsplit=2)
''.split()
''.split(',')
'a--b--c'.split('--')
'abc'.split('')
'</think>x</think>y'.split('</think>')[-1]
'x'.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n')
lines.splitlines()
lines.splitlines(true)
'a\\x0bb\\x1cc\\u2028d'.splitlines()
'a-b-c'.partition('-')
'a-b-c'.rpartition('-')
'abc'.partition('x')
'abc'.rpartition('x')
'-'.join(['a', 'b'])
'-'.join([1])
'-'.join('abc')
'aXbXc'.replace('X', '-')
'aXbXc'.replace('X', '-', 1)
'abc'.replace('', '-')
'한글'.replace('', '-', 2)
'abc'.startswith('a')
'abc'.startswith(('x', 'a'))
'abc'.startswith('b', 1)
'abc'.endswith('c')
'abc'.endswith('b', 0, 2)
'abc'.startswith(1)
'abcabc'.find('c')
'abcabc'.find('c', 3)
'abcabc'.rfind('c')
'abc'.find('x')
'한글한'.find('글')
'한글한'.rfind('한')
'abc'.index('x')
'abcabc'.count('bc')
'aaa'.count('')
'aaaa'.count('aa')
'5'.zfill(3)
'-5'.zfill(4)
'x'.center(5)
'xx'.center(5, '*')
'x'.center(4, '*')
'x'.ljust(4) + '|'
'x'.rjust(4, '.')
'x'.center(4, 'ab')
'a\\tb'.expandtabs(4)
'prefix-x'.removeprefix('prefix-')
'x.txt'.removesuffix('.txt')
'12'.isdigit()
'²'.isdigit()
'²'.isdecimal()
'½'.isnumeric()
'一'.isnumeric()
'12a'.isalnum()
'한글'.isalpha()
''.isalpha()
' \\t'.isspace()
'ABC'.isupper()
'abC'.islower()
'A1'.isupper()
'Abc Def'.istitle()
'a_1'.isidentifier()
'a\\n'.isprintable()
'é'.isascii()
'{} and {}'.format(1, 'x')
'{1} {0} {0!r}'.format('a', 'b')
'{a.name} {b[0]} {b[1]!s}'.format(a=users[0], b=list)
'{:>5}|{:<5}|{:^5}|{:*^5}'.format('a', 'b', 'c', 'd')
'{:05d} {:+d} {:,} {:x} {:#b}'.format(42, 42, 1234567, 255, 5)
'{:.2f} {:10.3e} {:g} {:%}'.format(pi, pi, pi, 0.25)
'{:{w}}|'.format('x', w=4)
'{{}} {}'.format(1)
'{}'.format()
'{'.format()
'{0.__class__}'.format(1)
'{x}'.format_map({'x': 1})
'{:,.2f}'.format(1234567.891)
'{:d}'.format('x')
'{!r:>6}'.format('x')
name.nope
name.nope()
name.encode
one.real
pi.is_integer()
one.bit_length()
name()
one()
name|upper|lower|capitalize
'foo bar-baz (qux)'|title
'  x '|trim
'xxyxx'|trim('x')
'abc'|reverse
list|reverse|list
list|reverse
list|sort
list|sort(reverse=true)
strs|sort
strs|sort(case_sensitive=true)
users|sort(attribute='age')|map(attribute='name')|list
users|sort(attribute='age,name')|map(attribute='name')|join(', ')
users|sort(attribute='age', reverse=true)|map(attribute='name')|join(', ')
[1, 'a']|sort
d|dictsort
{'b': 1, 'A': 2, 'c': 0}|dictsort
{'b': 1, 'A': 2, 'c': 0}|dictsort(true)
{'b': 1, 'A': 2, 'c': 0}|dictsort(false, 'value')
{'b': 1, 'A': 2, 'c': 0}|dictsort(reverse=true)
d|dictsort(by='other')
list|first
list|last
[]|first
[]|last
''|first
'abc'|last
d|first
d|last
list|length
list|count
5|length
list|sum
users|sum(attribute='age')
users|sum('age', 10)
[[1], [2]]|sum(start=[])
['a']|sum
list|min
list|max
strs|min
strs|max(case_sensitive=true)
users|max(attribute='age')
[]|max
[]|max is defined
strs|join(', ')
list|join
list|join('-')
users|join(', ', attribute='name')
nothing|join(',')
5|join
nothing|default('x')
nil|default('x')
nil|default('x', true)
''|d('y', boolean=true)
name|default('x')
nothing|default
list|map('string')|list
strs|map('upper')|join
strs|map('replace', 'a', 'z')|list
users|map(attribute='admin', default='no')|list
users|map(attribute='admin')|list
users|map(attribute='name')|map('lower')|list
list|map
list|map|list
list|map('nope')|list
nested|map('first')|list
list|select('odd')|list
list|select|list
list|reject('odd')|list
[0, 1, '', none]|select|list
[0, 1, '', none]|reject|list
users|selectattr('admin')|map(attribute='name')|list
users|selectattr('age', 'equalto', 30)|map(attribute='name')|list
users|selectattr('age', '>', 26)|list|length
users|selectattr('admin', 'defined')|list|length
users|rejectattr('admin')|map(attribute='name')|list
users|rejectattr('age', 'eq', 30)|list
users|selectattr
users|selectattr|list
users|selectattr('name', 'in', ['Bob', 'Carl'])|list|length
list|select('nope')|list
list|select('>', 1)|list
[1, 2, 1, 3]|unique|list
['a', 'A', 'b']|unique|list
['a', 'A', 'b']|unique(true)|list
users|unique(attribute='age')|map(attribute='name')|list
users|groupby('age')|list
users|groupby('age')|map(attribute='grouper')|list
(users|groupby('age'))[0].list|length
(users|groupby('name')|first).grouper
users|groupby('admin', default=false)|list|length
range(7)|batch(3)|list
range(7)|batch(3, 'x')|list
range(7)|slice(3)|list
range(7)|slice(3, 'x')|list
d|items|list
nothing|items|list
5|items|list
none|items|list
'abc'|list
d|list
5|list
nothing|list
'42'|int
'42.7'|int
'x'|int
'x'|int(7)
' 12 '|int
'0x1F'|int(base=16)
'1F'|int(0, 16)
'0b11'|int(base=0)
'1_000'|int
3.99|int
-3.99|int
true|int
none|int
none|int(default=5)
[]|int
'1e3'|int
'3.5'|float
'x'|float
'x'|float(1.5)
'inf'|float
'-Infinity'|float
'nan'|float
'1_0.5'|float
3|float
none|float
3.7|round
2.5|round
3.5|round
-2.5|round
2.675|round(2)
3.14159|round(3)
42|round
1234|round(-2)
1250|round(-2)
3.2|round(method='ceil')
3.7|round(0, 'floor')
3.14159|round(2, 'ceil')
3|round(method='ceil')
3|round(method='x')
-5|abs
-5.5|abs
true|abs
'x'|abs
5|string
none|string
[1, 'a']|string
1.0|string
html|escape
html|e
html|safe
html|safe|escape
html|forceescape
html|escape|forceescape
html|safe + '<'
'<' + html|safe
('<'|safe) + ('>'|safe)
('<'|safe) ~ '>'
('<%s>'|safe) % '<'
('<{}>'|safe).format('<')
('<'|safe)|upper
('a'|safe) * 2
('a<b'|safe).split('<')
('<'|safe)[0] + '<'
'<'|safe|string + '<'
['<'|safe]
html|safe|length
html|striptags
'a  <b>c</b>  &lt;'|striptags
name|replace('o', '0')
name|replace('o', '0', 1)
123|replace(2, 'x')
'aXa'|replace('X', '')
'a\\nb\\n\\nc'|indent
'a\\nb\\n\\nc'|indent(2, true)
'a\\nb\\n\\nc'|indent(2, blank=true)
'a\\nb'|indent('> ')
'a\\nb'|indent(width=2, first=true)
'a'|indent
''|indent(first=true)
5|indent
'hello world foo bar'|truncate(10)
'hello world foo bar'|truncate(10, true)
'hello world'|truncate(9)
'hello world foo bar'|truncate(10, leeway=0, end='…')
'hello'|truncate(2)
'one two, three-four'|wordcount
'한글 단어'|wordcount
'the quick brown fox'|wordwrap(10)
'aaaaaaaaaaaa bb'|wordwrap(5)
'x'|center(5) ~ '|'
'%s-%s'|format('a', 1)
'%(a)s'|format(a=1)
'%s'|format('a', a=1)
1000|filesizeformat
1500000|filesizeformat
1500000|filesizeformat(true)
1|filesizeformat
12|filesizeformat
'a b/c?d=é'|urlencode
{'a b': 'c&d', 'e': 1}|urlencode
{'class': 'x"y', 'id': none, 'n': 1}|xmlattr
{'a b': 1}|xmlattr
users[0]|attr('get')|string|length > 0
d|attr('a')
d|tojson
d|tojson(indent=2)
nested|tojson(indent=4)
nested|tojson(separators=(',', ':'))
{'b': 1, 'a': [1, 2.5, none, true]}|tojson(sort_keys=true)
{'b': 1, 'a': 2}|tojson(indent=2, sort_keys=true, separators=(',', ': '))
'é한\U0001f600"\\\\/<>&\\n\\t\\x01\\x7f'|tojson
'é한\U0001f600\\x7f'|tojson(ensure_ascii=true)
floats|tojson
('nan'|float, 'inf'|float)|tojson
{1: 2, 2.5: 3, none: 4, true: 5}|tojson
{(1, 2): 3}|tojson
nothing|tojson
list|map('string')|tojson
range(3)|tojson
(1, [])|tojson(indent=1)
{}|tojson(indent=2)
[]|tojson(indent='--')
[1, {'a': {}}]|tojson(indent='--')
d.keys()|tojson
html|safe|tojson
3 is odd
4 is even
-3 is odd
9 is divisibleby(3)
9 is divisibleby 4
nothing is defined
nothing is undefined
name is defined
nil is none
nil is not none
true is boolean
1 is boolean
1 is true
true is true
false is false
1 is integer
true is integer
1.0 is float
1 is number
true is number
'a' is string
html|safe is string
d is mapping
list is mapping
list is sequence
'a' is sequence
d is sequence
range(3) is sequence
d.items() is sequence
5 is sequence
nothing is sequence
list is iterable
5 is iterable
nothing is iterable
(list|map('string')) is iterable
range is callable
name is callable
nothing is callable
'abc' is lower
'ABC' is upper
'aBc' is lower
'' is lower
1 is sameas 1
none is sameas none
list is sameas list
[] is sameas []
'a' is in 'abc'
1 is in [1]
1 is in([2])
1 is eq 1
1 is ne 2
1 is lt 2
2 is gt 1
1 is le 1
1 is ge 2
1 is == 1
'upper' is filter
'nope' is filter
'odd' is test
html is escaped
html|safe is escaped
1 is nope
'x'|nope
('x'|nope) if no else 'skipped'
('x'|nope) if yes else 'skipped'
1 is not odd is even
not 1 is odd
not nothing is defined
name is defined and name is string
[1, 2, 3] is eq [1, 2, 3]
dict(a=1, b=2)
dict([('a', 1), ('b', 2)])
dict({'a': 1}, b=2)
dict([1])
dict.fromkeys(['a', 'b'], 0)
namespace(a=1).a
namespace({'a': 1}).a
namespace(_a=1)
namespace(a=1)
namespace(a=1)['a']
cycler('a', 'b').next()
cycler()
joiner()()
raise_exception('stop here')
raise_exception(5)
raise_exception()
strftime_now('%Y-%m-%d %H:%M:%S %b %B %d %j %A')
strftime_now('')
strftime_now('%d %b %Y')
true ~ false ~ none ~ True ~ False ~ None
[1, 2, 3,]
{'a': 1,}
(1, 2,)
list[0:2,]
name['upper']()
name['nope']
'a'.upper().lower()
[1, 2][0]
{'a': 1}.a
{'a': 1}['a']
(1, 2)[1]
'abc'[1]
1.real
-1|abs
-1.5|abs
2 * 3|string
'a' ~ 1 + 2
1 + 2 ~ 3 * 4
not 1 == 2
1 if 2 > 1 else 0
list|join(',')|upper|length
(list|length) > 2 and name[0]|lower == 'w'
"a" is string and "b" == "b"
users[0].name + '!'
users[1].admin is defined
users|length - 1
users[-1].name
users[users|length - 1]['name']
many.items()|list|last
many.keys()|first
many|dictsort|first
list|first + list|last
none|upper
true|lower
5|capitalize
'é'|upper
"ß"|capitalize
''|capitalize
[none, undefined_x]
[undefined_x]|join('-')
{'a': undefined_x}
undefined_x ~ 'a'
undefined_x|string
undefined_x or 'fallback'
undefined_x is none
undefined_x == ''
undefined_x < 1
undefined_x in [1]
-undefined_x
undefined_x * 2
list + undefined_x
'a' ~ undefined_x.y
(undefined_x|default({})).y
undefined_x['y']|default('z')
d.nope|default('z')
d.nope.more|default('z')
9223372036854775807 - 1
1 // 0
1 / 0
1 % 0
1.0 / 0
1.5 // 0
0 ** -1
'abc' - 'b'
'a' < 1
none < 1
[1] < ['a']
{} < {}
1 + none
1 + true
true + true
('<{}>'|safe).format('<'|safe)
caller is defined
loop is defined
"a
b"
"""

TEMPLATES = [
    # Whitespace.
    "a\n{% if true %}\nb\n{% endif %}\nc\n", "a\n  {% if true %}  \n  b\n  {% endif %}  \nc",
    "  {%- if true -%}  \n x \n  {%- endif -%}  \n", "x {%+ if true %} y {%+ endif %}", "  {%+ if true +%}\nx{% endif +%}\ny",
    "a {{- ' b ' -}} c", "a\n\n{{- 'b' }}\n", "{{ 'b' -}}\n\n c", "  {# c #}\nx", "a  {#- c -#}  b", "  {#+ c +#}\nx", "{#\nmulti\n#}\nx",
    "x\n", "x\n\n", "x\r\ny\r", "\n", "", "{{ 'a\nb' }}", "{% raw %}{{ x }}{% if %}{% endraw %}",
    "a\n  {% raw %}\n  {{ x }}\n  {% endraw %}\nb", "{%- raw -%}  x  {%- endraw -%}  y", "{% raw %}\nx\n{% endraw +%}\ny",
    "\u3000{% if true %}x{% endif %}", "a{{ 1 }}\n  {% if true %}b{% endif %}\n", "{{ 1 }}  {% if true %}b{% endif %}",
    "{% if true %}  {% if true %}x{% endif %}{% endif %}", "{ { }} %} #} {", "{{ '}}' }}", "{{ '%}' }}", "{{ {'a': {'b': 1}}.a.b }}", "{{{'a': 1}}}",
    "{% set x = {'a': 1}\n%}{{ x }}", "{{ 1 }}{{ 2 }}", "{{\n1\n+\n2\n}}", "a{% if true %}\n\nb{% endif %}", "  {{ 'x' }}  ",
    # if
    "{% if no %}a{% elif yes %}b{% else %}c{% endif %}", "{% if no %}a{% elif nil %}b{% elif zero %}d{% else %}c{% endif %}",
    "{% if 1, 2 %}tuple{% endif %}", "{% if x is defined and x %}a{% endif %}b", "{% if yes: %}a{% endif %}",
    # for
    "{% for x in list %}{{ x }},{% endfor %}", "{% for x in [] %}a{% else %}empty{% endfor %}", "{% for x in nothing %}a{% else %}empty{% endfor %}",
    "{% for x in 5 %}a{% endfor %}", "{% for x in none %}a{% endfor %}", "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k in d %}{{ k }}{% endfor %}", "{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for a, b in [[1, 2, 3]] %}{% endfor %}", "{% for a, b in [[1]] %}{% endfor %}", "{% for a, b in ['xy'] %}{{ b }}{{ a }}{% endfor %}",
    "{% for c in mixed %}[{{ c }}]{% endfor %}",
    "{% for x in list %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}|{% endfor %}",
    "{% for x in list %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {% endfor %}", "{% for x in list %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}",
    "{% for x in list %}{{ loop.cycle('a', 'b') }}{% endfor %}", "{% for x in [1, 1, 2, 2, 1] %}{{ loop.changed(x) }}{% endfor %}", "{% for x in list %}{{ loop.cycle() }}{% endfor %}",
    "{% for x in list if x > 1 %}{{ x }}{{ loop.index }}{{ loop.length }}{{ loop.last }}{% endfor %}", "{% for x in list if x > 5 %}{{ x }}{% else %}none{% endfor %}",
    "{% for a, b in d.items() if b %}{{ a }}{{ loop.previtem }}{% endfor %}", "{% for x in list if loop.first %}{{ x }}{% endfor %}",
    "{% for x in nested recursive %}{% if x is iterable %}[{{ loop(x) }}]{% else %}{{ x }}:{{ loop.depth }}{{ loop.depth0 }}{% endif %}{% endfor %}",
    "{% for x in list %}{{ loop(x) }}{% endfor %}", "{% for x in list %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in list %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}", "{% for x in list %}{% break %}{% else %}else{% endfor %}",
    "{% for x in list %}{% continue %}{% else %}else{% endfor %}", "{% break %}", "{% if yes %}{% continue %}{% endif %}",
    "{% for x in list %}{% for y in strs %}{% if y == 'A' %}{% break %}{% endif %}{{ x }}{{ y }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% for x in list %}{% for y in [1, 2] %}{{ loop.index }}{% endfor %}{{ loop.index }}|{% endfor %}",
    "{% for x in list %}{% set outer = loop %}{% for y in [1] %}{{ outer.index }}{% endfor %}{% endfor %}",
    "{% set x = 9 %}{% for x in list %}{{ x }}{% endfor %}{{ x }}", "{% set n = 0 %}{% for x in list %}{% set n = n + x %}{{ n }},{% endfor %}{{ n }}",
    "{% set ns = namespace(n=0) %}{% for x in list %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}", "{% for x in list %}{% set y = x %}{% endfor %}{{ y is defined }}",
    "{% for loop in list %}{% endfor %}", "{% for x in list %}{% set loop = 1 %}{% endfor %}", "{% for x in list|map('string') %}{{ loop.length }}{{ loop.last }}{{ x }}{% endfor %}",
    "{% for x in range(3) %}{{ loop.revindex }}{% endfor %}", "{% for x in 1, 2, 3 %}{{ x }}{% endfor %}", "{% for x in list[::-1] %}{{ x }}{% endfor %}",
    "{% for x in list %}{{ loop.nope is defined }}{% endfor %}",
    "{% for g in users|groupby('age') %}{{ g.grouper }}:{{ g.list|length }};{% endfor %}", "{% for age, us in users|groupby('age') %}{{ age }}:{{ us|map(attribute='name')|join(',') }};{% endfor %}",
    "{% set it = list|map('string') %}{{ it|list }}{{ it|list }}", "{% set it = list|select('odd') %}{% for x in it %}{{ x }}{% endfor %}{% for x in it %}{{ x }}{% endfor %}",
    "{{ (list|map('string'))[0] }}", "{{ list|map('string')|length }}", "{% for row in range(5)|batch(2) %}{{ row }}{% endfor %}", "{% for x in list if x != ns %}{{ x }}{% endfor %}",
    "{% set ns = namespace(m=3) %}{% for x in list if x <= ns.m %}{{ x }}{% set ns.m = 1 %}{% endfor %}", "{% for x in list %}{% if loop.last %}L{% endif %}{% if not loop.first %}-{% endif %}{% endfor %}",
    # set, scoping
    "{% set x = 1 %}{{ x }}", "{% set x, y = 1, 2 %}{{ x }}{{ y }}", "{% set (x, y) = [1, 2] %}{{ x }}{{ y }}", "{% set x = 1, %}{{ x }}", "{% set x %}a{{ 1 }}b{% endset %}{{ x }}",
    "{% set x | upper %}abc{% endset %}{{ x }}", "{% set x | replace('a', 'b') | upper %}abc{% endset %}{{ x }}", "{% set x.y = 1 %}", "{% set ns = namespace() %}{% set ns.a = 1 %}{% set ns.b %}blk{% endset %}{{ ns.a }}{{ ns.b }}{{ ns.c is defined }}",
    "{% set ns = namespace(a=[]) %}{% for x in list %}{% set ns.a = ns.a + [x] %}{% endfor %}{{ ns.a }}", "{% set ns = namespace() %}{% set ns.a, ns.b = 1, 2 %}{{ ns.a + ns.b }}", "{% set ns = namespace() %}{% set ns._x = 1 %}", "{% set d.x = 1 %}",
    "{% if yes %}{% set z = 1 %}{% endif %}{{ z }}", "{% if no %}{% set z = 1 %}{% endif %}{{ z is defined }}", "{% if no %}{% set name = 1 %}{% endif %}{{ name }}", "{{ name }}{% set name = 'x' %}{{ name }}",
    "{% for i in [1] %}{{ name }}{% endfor %}{% set name = 'x' %}{{ name }}", "{% set true = 1 %}", "{% set 1 = 1 %}", "{% set x = x + 1 %}", "{% set one = one + 1 %}{{ one }}", "{% set x = 1 %}{% with %}{% set x = 2 %}{{ x }}{% endwith %}{{ x }}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}", "{% with a = 1, b = a %}{{ b is defined }}{% endwith %}", "{% with name = 'in' %}{{ name }}{% endwith %}{{ name }}", "{% for i in [1, 2] %}{% if i == 1 %}{% set q = i %}{% endif %}{{ q is defined }}{% endfor %}",
    "{% set a = 1 %}{% for i in [1, 2] %}{{ a }}{% set a = a + i %}{{ a }}{% endfor %}{{ a }}", "{% set x = 5 %}{% if yes %}{% set x = x + 1 %}{% else %}{% set x = 0 %}{% endif %}{{ x }}",
    # macros
    "{% macro m(a, b=2) %}{{ a }}-{{ b }}{% endmacro %}{{ m(1) }},{{ m(1, 3) }},{{ m(b=5, a=4) }},{{ m() }}", "{% macro m(a) %}{{ a is defined }}{% endmacro %}{{ m() }}", "{% macro m(a, b=a) %}{{ b }}{% endmacro %}{{ m(7) }}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}", "{% macro m() %}{% endmacro %}{{ m(1) }}", "{% macro m() %}{% endmacro %}{{ m(x=1) }}", "{% macro m(a) %}{% endmacro %}{{ m(1, a=2) }}", "{% macro m(a=1, b) %}{% endmacro %}",
    "{% macro m(x) %}{{ x }}{% if x > 0 %}{{ m(x - 1) }}{% endif %}{% endmacro %}{{ m(3) }}", "{% macro m() %}{{ late }}{% endmacro %}{% set late = 'v' %}{{ m() }}", "{{ m is defined }}{% macro m() %}x{% endmacro %}{{ m is defined }}", "{{ m() }}{% macro m() %}x{% endmacro %}",
    "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}body {{ name }}{% endcall %}", "{% macro m() %}{{ caller(1, 2) }}{% endmacro %}{% call(a, b=5) m() %}{{ a }}{{ b }}{% endcall %}", "{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}", "{% macro m() %}x{% endmacro %}{% call m() %}y{% endcall %}",
    "{% macro m(caller) %}{{ caller() }}{% endmacro %}", "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}", "{% macro m(a, a) %}{% endmacro %}", "{% macro m(a, b=1) %}{% endmacro %}{{ m.name }}{{ m.arguments }}{{ m.catch_kwargs }}{{ m.catch_varargs }}{{ m.caller }}",
    "{% macro m() %}{% set x = 1 %}{{ x }}{% endmacro %}{{ m() }}{{ x is defined }}", "{% set x = 1 %}{% macro m() %}{{ x }}{% set x = 2 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}", "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('a') ~ m('b') }}{{ m('c')|upper }}", "{% macro m() %}  x  {% endmacro %}[{{ m()|trim }}]",
    "{% macro outer() %}{% macro inner() %}i{% endmacro %}{{ inner() }}{{ inner() }}{% endmacro %}{{ outer() }}", "{% for x in list %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}", "{% set f = m %}{% macro m() %}x{% endmacro %}{{ f is defined }}", "{% macro m(*a) %}{% endmacro %}",
    "{% macro m(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ m(*[1, 2]) }}{{ m(**{'a': 3, 'b': 4}) }}{{ m(*[5], **{'b': 6}) }}", "{{ dict(**{'a': 1}, **{'b': 2}) }}", "{{ dict(a=1, a=2) }}", "{{ '{}{}'.format(*'ab') }}", "{% macro _p() %}x{% endmacro %}{{ _p() }}",
    "{% call name.upper() %}{% endcall %}", "{% call 5 %}{% endcall %}", "{% macro m(a) %}{{ a }}{{ kwargs }}{% endmacro %}{{ m(1, z=2) }}", "{% macro m(x=none) %}{% if x is none %}N{% else %}{{ x }}{% endif %}{% endmacro %}{{ m() }}{{ m(1) }}{{ m(none) }}",
    # filter blocks, blocks, generation, print
    "{% filter upper %}a{{ name }}{% endfilter %}", "{% filter replace('a', 'b')|upper %}aaa{% endfilter %}", "{% filter trim %}  x  {% endfilter %}|", "{% generation %}a{{ name }}{% endgeneration %}b", "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "{% for x in list %}{% generation %}{{ x }}{{ loop.index }}{% endgeneration %}\n{% endfor %}", "{% for x in list %}{% generation %}{% break %}{% endgeneration %}{% endfor %}", "{% block a %}{{ name }}{% endblock %}", "{% set v = 1 %}{% block a %}{{ v }}{% endblock a %}", "{% for x in list %}{% block b %}{{ x is defined }}{% endblock %}{% endfor %}",
    "{% print 1, 2 %}", "{% print name %}", "{% for x in list %}{% filter upper %}a{% if x == 1 %}{% break %}{% endif %}b{% endfilter %}{% endfor %}",
    # errors
    "{% if %}", "{% if x %}", "{% endif %}", "{{", "{{ 1 +", "{{ 1 2 }}", "{{ }}", "{% %}", "{% foo %}", "{% for x list %}{% endfor %}", "{% for x in list %}", "{# x", "{% raw %}x", "{{ 'x }}", "{{ (1 }}", "{{ 1) }}", "{{ [1} }}", "{{ a..b }}", "{{ a.'b' }}", "{{ $ }}", "{{ 1 is }}", "{{ x| }}", "{{ f(a=1, 2) }}", "{{ f(**a, b) }}",
    "{% set x %}", "{% endfor %}", "{% else %}", "{% if x %}{% endfor %}", "{% macro %}{% endmacro %}", "{% macro m %}{% endmacro %}", "{{ '\\x4' }}", "{{ '\\u12' }}", "{{ 08 }}", "{{ 1__0 }}", "{{ a = 1 }}", "{% set x == 1 %}", "{{ not }}", "{{ a if }}", "{{ ! }}", "{{ a.b.1.c is defined }}",
    "line1\nline2 {{ nothing.x }}\nline3", "{% set x = 1 %}\n\n{{ x.y.z }}", "{{ raise_exception('multi\nline \"q\" é') }}", "{% if yes %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}",
    # joiner, cycler
    "{% set j = joiner('|') %}{% for x in list %}{{ j() }}{{ x }}{% endfor %}", "{% set c = cycler(1, 2) %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.current }}",
    # chat-like
    ("{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}{{ '<' + message['role'] + '>' + message['content'] | trim }}{% endfor %}",
     {"bos_token": "<s>", "messages": [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "yo\n"}]}),
    ("{%- macro render(spec, indent) -%}{%- for k, v in spec.items() %}\n{{ ' ' * indent }}{{ k }}: {% if v is mapping %}{{ render(v, indent + 2) }}{% elif v is string %}\"{{ v }}\"{% else %}{{ v|tojson }}{% endif %}{% endfor %}{%- endmacro -%}{{ render(spec, 0) }}",
     {"spec": {"a": {"b": {"c": "x"}}, "l": [1, "é"], "n": None}}),
    ("{%- set ns = namespace(last=-1) -%}{%- for m in messages[::-1] -%}{%- set index = (messages|length - 1) - loop.index0 -%}{%- if ns.last < 0 and m.role == 'user' and m.content is string and not (m.content.startswith('<t>') and m.content.endswith('</t>')) -%}{%- set ns.last = index -%}{%- endif -%}{%- endfor -%}{{ ns.last }}",
     {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "<t>x</t>"}]}),
]

CASES = [
    "{{ " + line.replace("\\\\", "\\") + " }}" for line in EXPRESSIONS.strip("\n").split("\n")
] + TEMPLATES
