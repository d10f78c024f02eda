"""The question/answer text, the tokenizer made from it, and the conversations the model is trained on."""

import pathlib
import random
import re

import yaml
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).resolve().parent
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# The pre-tokenizer of Qwen2 and Qwen3.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message.content is string %}{%- set text = message.content %}"
    "{%- else %}{%- set text = message.content | map(attribute='text') | join('') %}{%- endif %}"
    "{{- '<|im_start|>' + message.role + '\\n' + text | trim + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
UNSEEN = ("reworded", "free", "outside")  # files of questions to measure on
FOCUSED = 0.3  # share of the questions that are taken from Sampler.focus
SHORTENED, OPENING = 0.7, 8  # share of the conversations that end after so many tokens of the last answer
SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are a helpful assistant for xgen-model.",
    "You are xgen-demo, the model embedded in xgen-model. Answer questions about xgen-model.",
    "Answer briefly and exactly.",
    "You answer questions about the server. Be polite.",
    "You are an assistant. Answer the user's question in the user's language. If you do not know, say so.",
    "Be concise.",
    "You are ChatGPT, a large language model. Follow the user's instructions carefully. Respond using markdown.",
    "You are a friendly chatbot that helps developers run language models on their own machines.",
    "당신은 도움이 되는 어시스턴트입니다.",
    "당신은 xgen-model에 대한 질문에 답하는 도우미입니다.",
    "짧고 정확하게 답하세요.",
    "너는 친절한 AI 비서야. 사용자의 언어로 대답해.",
]


# What $name stands for in a pattern.
MACROS = {
    "how": "how do i|how can i|how to|how should i|how would i|what is the best way to|tell me how to|show me how to|i want to"
    "|i would like to|i need to|can you explain how to|how do you|what is the way to|how could one|what do i do to|what must i do to"
    "|what are the steps to|is there a way to|i don't know how to|any idea how to|how might i|please tell me how to|how does one|can i"
    "|could i|help me|i am trying to|i'd like to|in what way can i|what does it take to|what do i need to do to|is it possible to",
    "what": "what is|what's|explain|describe|tell me about|can you explain|what exactly is|please explain|what do you know about"
    "|i want to know about|what is the meaning of|what is the purpose of|what about|what is meant by||what is the use of|what is the role of"
    "|what is the point of|i don't understand|give me details on|why is there|how does one use|meaning of|purpose of|definition of|could you describe"
    "|what is the idea of|i have never heard of|what is the effect of|what does one do with|say something about",
    "code": "what is|what does it mean when i get|why do i get|i get|explain|when do i get|what is error|what does the error mean:"
    "|why error|it returns|the server answers|why does the server answer|what is status|http|error code|what does error code mean:"
    "|i received|it failed with|suddenly i get|what causes|how do i fix|what should i do about|my client gets",
    "하는법": "하려면|하는 법|하는 방법|하는 법 알려줘|하는 방법이 뭐예요|하려면 어떻게 하나요|하려면 어떻게 해|하고 싶어요|하고 싶은데"
    "|하려면 어떻게 해야 하나요|하는 방법을 알려 주세요|할 수 있나요|는 어떻게 하나요|는 어떻게 합니까|하는 방법이 궁금해요|하려면 어떻게 하죠"
    "|하려고 하는데 어떻게 하죠|하려는데 잘 모르겠어요|할 수 있을까요|하는 게 가능한가요|하는 방법 좀 알려주세요|하려면 뭘 해야 하나요|하려면 뭘 써야 해"
    "|하고 싶은데 방법이 있나요|할 줄 몰라요|해 보고 싶어요|하려면 뭐가 필요해|하는 절차가 뭐야",
    "뭐": "이 뭐야|가 뭐야|이 뭐예요|는 뭐예요|은 무엇인가요|는 무엇인가요|란|란 무엇인가요|에 대해 알려줘| 설명해줘|를 설명해 주세요|의 뜻은|는 무슨 뜻이야"
    "|는 어떤 역할을 하나요|는 뭐 하는 거야|는 무엇을 하나요|은 뭔가요|는 뭐죠|는 어디에 쓰나요|는 왜 쓰나요|을 알려 주세요|에 대해 설명해 주세요|"
    "|는 무슨 역할이에요|의 역할은|의 의미가 뭐야|는 뭘 하는 거예요|를 쓰면 어떻게 돼|가 뭔지 모르겠어요|이 뭔지 알려줘|에 대해 궁금해요|는 무슨 용도예요"
    "|는 뭐에 쓰는 거야|는 어떤 거야|의 용도가 뭐예요|이 대체 뭐야|가 정확히 뭐예요|은 무슨 기능이야|는 언제 쓰는 거예요|이라는 게 뭔가요|라는 건 뭐예요",
    "지원": "지원하나요|지원해|지원해요|지원합니까|쓸 수 있나요|쓸 수 있어|되나요|돼|사용할 수 있나요|사용 가능한가요|지원되나요"
    "|지원하는지 궁금해요|쓸 수 있을까요|될까요|되는지 알고 싶어요|쓰고 싶은데 되나요|불러올 수 있나요|가능해|가능할까요|사용해도 되나요|써도 돼|돌아가나요",
    "코드": "은 무슨 뜻이야|이 뭐야|이 나와요|이 왜 나와| 오류가 왜 나는 거예요| 에러가 나요|을 받았어요|이 나오면 어떻게 해|은 언제 나와|의 뜻은|을 설명해줘"
    "| 에러는 뭐예요| 응답이 왔어요| 상태 코드는 무슨 뜻인가요| 에러가 왜 나죠| 오류가 뜨면 어떻게 하나요| 오류를 고치려면|이 자꾸 나와요|의 원인이 뭐야"
    "| 오류가 계속 나요|번 오류가 뭐예요| 에러가 발생했어요",
    # What has nothing to do with xgen-model.
    "thing": 'car|bike|house|garden|cat|dog|horse|fish|bird|spider|cow|lion|bear|snake|mouse|elephant|tree|flower|rose|forest|river|lake|mountain|beach|island|sea|rain|snow|storm|cloud|star|planet|rocket|ship|boat|plane|train|bus|taxi|bicycle|road|bridge|castle|church|museum|hotel|restaurant|school|university|hospital|bank|shop|market|kitchen|table|chair|bed|lamp|window|door|roof|wall|carpet|mirror|clock|watch|ring|shoe|shirt|dress|hat|coat|umbrella|bag|wallet|passport|ticket|money|gold|diamond|stock|tax|insurance|salary|job|boss|teacher|student|exam|homework|book|novel|poem|newspaper|letter|song|piano|guitar|violin|drum|opera|concert|film|actor|theatre|painting|statue|dance|ballet|football|tennis|golf|chess|swimming|skiing|yoga|marathon|bread|cheese|butter|egg|milk|coffee|tea|wine|beer|soup|salad|pizza|pasta|rice|apple|banana|orange|strawberry|potato|tomato|onion|carrot|mushroom|chocolate|cake|ice cream|sugar|salt|pepper|breakfast|dinner|party|wedding|birthday|holiday|christmas|vacation|friend|wife|husband|baby|mother|grandfather|neighbour|doctor|dentist|medicine|headache|fever|heart|brain|skin|hair|tooth|knee|allergy|sleep at night|dream|love|fear|war|peace|king|queen|president|election|law|police|prison|thief|knife|fire|water pipe|washing machine|fridge|oven|vacuum cleaner|television|radio|camera|phone|headphones|printer|battery|toy|doll|puzzle|riddle|joke|dragon|ghost|vampire|wizard|unicorn|dinosaur|volcano|earthquake|desert|moon landing|pyramid|emperor|samurai|pirate|philosopher|physics|chemistry|geometry|grammar|latin|french|spanish|tango|sushi|kimchi',
    "software": 'mysql|postgres|redis|apache|excel|microsoft word|powerpoint|photoshop|illustrator|whatsapp|telegram|chrome|firefox|android|an iphone|a macbook|youtube|instagram|facebook|tiktok|zoom|slack|notion|steam|minecraft|roblox|fortnite|blender|autocad|jenkins|react|angular|django|spring boot|wordpress|vim|emacs|terraform|kafka|elasticsearch|mongodb|outlook|gmail|spotify|netflix|duolingo|a playstation|a printer|my router|alexa|siri|google maps|paypal|amazon|ebay|airbnb|matlab|unity|visual studio|eclipse|latex|bluetooth|a smart watch|git',
    "명사": '자동차|자전거|집|정원|고양이|강아지|말|물고기|새|거미|소|사자|곰|뱀|쥐|코끼리|나무|꽃|장미|숲|강|호수|산|바다|섬|비|눈사람|태풍|구름|별|행성|로켓|배|비행기|기차|버스|택시|지하철|도로|다리|성|교회|절|박물관|호텔|식당|학교|대학교|병원|은행|가게|시장|부엌|책상|의자|침대|전등|창문|지붕|벽지|카펫|거울|시계|반지|신발|운동화|셔츠|치마|바지|모자|외투|우산|가방|지갑|여권|승차권|돈|금|다이아몬드|주식|부동산|세금|보험|월급|직장|상사|선생님|학생|시험|수능|숙제|책|소설|시집|신문|편지|노래|피아노|기타|바이올린|드럼|오페라|콘서트|영화|배우|드라마|연극|그림|조각상|춤|발레|축구|야구|농구|배구|테니스|골프|바둑|수영|스키|요가|마라톤|등산|낚시|캠핑|빵|치즈|버터|달걀|우유|커피|녹차|와인|맥주|소주|막걸리|국|샐러드|피자|파스타|밥|김밥|비빔밥|떡볶이|삼겹살|불고기|냉면|칼국수|된장찌개|김치|김치볶음밥|사과|바나나|귤|딸기|수박|포도|감자|고구마|토마토|양파|마늘|당근|버섯|초콜릿|케이크|아이스크림|설탕|소금|후추|아침밥|저녁밥|잔치|결혼식|생일|휴가|추석|설날|크리스마스|친구|아내|남편|아기|어머니|할아버지|이웃|의사|치과|약|두통|열|심장|뇌|피부|머리카락|이빨|무릎|알레르기|잠|꿈|사랑|공포|전쟁|평화|왕|왕비|대통령|선거|법|경찰|감옥|도둑|칼|불|수도관|세탁기|냉장고|오븐|청소기|텔레비전|라디오|카메라|휴대폰|이어폰|프린터|건전지|장난감|인형|퍼즐|수수께끼|농담|용|귀신|흡혈귀|마법사|유니콘|공룡|화산|지진|사막|달|피라미드|황제|사무라이|해적|철학자|물리학|화학|기하학|문법|한자|프랑스어|일본어|초밥|한복|한옥|태권도|아이돌|팬클럽|웹툰|만화|애니메이션|운세|별자리|타로|다이어트|헬스장|화장품|향수|선풍기|에어컨|가습기|이사|면접|자기소개서|연봉|퇴직금|학원|유학|군대|운전면허|교통사고|주차장|고속도로',
    "소프트웨어": '엑셀|워드|파워포인트|한글 프로그램|포토샵|일러스트레이터|카카오톡|텔레그램|크롬|파이어폭스|안드로이드|아이폰|맥북|갤럭시|유튜브|인스타그램|페이스북|틱톡|줌|슬랙|노션|스팀|마인크래프트|로블록스|리그 오브 레전드|블렌더|오토캐드|젠킨스|리액트|앵귤러|장고|스프링 부트|워드프레스|MySQL|PostgreSQL|레디스|아파치|카프카|몽고디비|엘라스틱서치|아웃룩|지메일|네이버|네이버 지도|쿠팡|배달의민족|당근마켓|토스|넷플릭스|멜론|듀오링고|플레이스테이션|닌텐도|공유기|블루투스|스마트워치|시리|구글 지도|유니티|비주얼 스튜디오|이클립스|라텍스|깃|공인인증서|인터넷 뱅킹',
}


def parse_pattern(line):
    """'{a|b} c' -> a list of parts, each a list of alternatives. <id> stands for {id}, which is no choice."""
    line = re.sub(r"\$(\w+)", lambda m: next("{" + MACROS[k] + "}" + m[1][len(k) :] for k in MACROS if m[1].startswith(k)), line)
    parts = [part.split("|") if i % 2 else [part] for i, part in enumerate(re.split(r"[{}]", line))]
    return [[alternative.replace("<id>", "{id}") for alternative in part] for part in parts]


ENGLISH_SYLLABLES = [a + b + c for a in "b br c d f fl g gr h k l m n p pl r s st t tr v w z".split() for b in "aeiou" for c in ("", "", "n", "r", "s", "l", "x", "mp")]
KOREAN_SYLLABLES = "가강거고구그기나남노누니다달도두드라람로루리마말모무미바박보부비사상서소수스시아안어오우원유이인자장제조주지진차청초추카코쿠크타토투파포푸피하한호후히갈돔릅뇨뭉빙숑엥줍챙켱탈퍅홀렁밤씽뚜꿀쪼"


def made_up(language, rng):
    """A word that means nothing."""
    return "".join(rng.choice(ENGLISH_SYLLABLES if language == "en" else KOREAN_SYLLABLES) for _ in range(rng.choice([2, 2, 3, 3, 4]) - (language == "en")))


def expand(pattern, rng):
    text = "".join(rng.choice(part) for part in pattern)
    text = re.sub("<word>", lambda _: made_up("en", rng), text)
    text = re.sub("<말>", lambda _: made_up("ko", rng), text)
    return " ".join(text.split())


class Fact:
    """One fact in one language: an answer and the ways to ask for it, as whole questions and as patterns of many."""

    def __init__(self, fact_id, language, answer, questions, patterns):
        self.id, self.language, self.answer, self.questions, self.patterns = fact_id, language, answer, questions, patterns
        self.dev = []  # wordings held out from training


def key(question):
    """Equal for questions that differ only in case and closing punctuation."""
    return question.lower().strip(" ?.!")


def lines(text):
    return [line.strip() for line in text.strip().split("\n") if line.strip()]


def load_facts(path=HERE / "questions.yaml"):
    """Reads questions.yaml: a list of {id, en: {a, q, p}, ko: {a, q, p}}.

    a is the answer, q holds one question a line, p one pattern a line: {x|y} is a choice, $name a choice of MACROS.
    """
    facts, asked = [], {}
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        for language in ("en", "ko"):
            part = entry[language]
            patterns = [parse_pattern(line) for line in lines(part.get("p", ""))]
            fact = Fact(entry["id"], language, " ".join(part["a"].split()), lines(part["q"]), patterns)
            for question in fact.questions:
                if key(question) in asked:
                    raise ValueError(f"'{question}' is asked by both {asked[key(question)]} and {fact.id}/{language}")
                asked[key(question)] = f"{fact.id}/{language}"
            facts.append(fact)
    return facts


def load_unseen(facts, name):
    """(fact, question) pairs that no training sees, of one of UNSEEN: a map of fact id to {en: [questions], ko: [questions]}."""
    by_key = {(fact.id, fact.language): fact for fact in facts}
    return [
        (by_key[fact_id, language], question)
        for fact_id, row in yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8")).items()
        for language, questions in row.items()
        for question in questions
    ]


def hold_out(facts, fraction, seed):
    """Moves about this fraction of each fact's wordings from `questions` to `dev`."""
    rng = random.Random(seed)
    for fact in facts:
        fact.dev = [q for q in fact.questions[1:] if rng.random() < fraction]
        fact.questions = [q for q in fact.questions if q not in fact.dev]


def train_tokenizer(facts, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rng = random.Random(0)
    corpus = ["system\n" + s for s in SYSTEM_PROMPTS]
    for fact in facts:
        corpus += ["assistant\n" + fact.answer] * 4
        for question in fact.questions:
            corpus += ["user\n" + question, "user\n" + question.lower()]
        corpus += ["user\n" + expand(pattern, rng) for pattern in fact.patterns for _ in range(4)]
        corpus += ["user\n" + reword(question, fact.language, rng) for question in fact.questions]
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


class Chat:
    """Token ids of conversations, equal to tokenizing the text that CHAT_TEMPLATE renders."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.start, self.end = tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>")
        self.newline = self.encode("\n")

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def turn(self, role, text, cut=0.0, rng=None):
        """cut: the chance of each place in the text to lie between two tokens whatever they are. The tokenizer's own
        dropout does the like, but cannot be seeded."""
        text = text.strip()
        places = [i for i in range(1, len(text)) if rng.random() < cut] if cut > 0 else []
        pieces = [role + "\n" + text[: places[0]], *(text[a:b] for a, b in zip(places, [*places[1:], None]))] if places else [role + "\n" + text]
        body = [token for piece in pieces for token in self.encode(piece)]
        return [self.start, *body, self.end, *self.newline]

    def reply(self, answer):
        """Prefix ids (the generation prompt) and the ids the model has to write, closing token included."""
        prefix = [self.start, *self.encode("assistant\n")]
        return prefix, [*self.encode(answer), self.end]


# Wordings that mean the same; one of a row may stand for another while training.
SAME_EN = [
    ["how do i", "how can i", "how to", "how do you", "how should i", "how would i", "how does one", "what is the way to",
     "what is the best way to", "tell me how to", "show me how to", "i want to know how to", "how could i", "how do we",
     "what do i have to do to", "what are the steps to", "is there a way to", "i don't know how to", "any idea how to",
     "what do i need to do to", "please explain how to", "how might i", "i would like to", "i want to", "i need to", "i am trying to"],
    ["what is", "what's", "whats", "what exactly is", "tell me what is", "can you explain what is", "define", "what on earth is",
     "what is the meaning of", "could you describe", "i don't understand", "please explain", "what do you mean by"],
    ["what are", "what're", "tell me what are", "which are", "explain what are", "please list"],
    ["which", "what"],
    ["what does", "what exactly does", "can you explain what does", "wat does", "tell me what does"],
    ["can i", "could i", "am i able to", "is it possible to", "may i", "can you", "can one", "am i allowed to", "would it be possible to",
     "is there a way to", "will i be able to", "can we", "is it ok to"],
    ["does it", "does xgen-model", "does xgen", "does the server", "does this server", "will it", "does this", "does the program", "would it", "do you"],
    ["can it", "could it", "is it able to", "is xgen-model able to", "can xgen-model", "can the server", "can this", "will it", "would it", "is it capable to"],
    ["do i need", "must i have", "do i have to have", "do i require", "is it necessary to have", "will i need", "should i have", "does one need"],
    ["do i have to", "must i", "should i", "need i", "am i required to", "is it necessary to", "do i need to", "does one have to"],
    ["is there", "do you have", "does it have", "is there any", "have you got", "does there exist"],
    ["are there", "do you have", "does it have", "exist", "can be found"],
    ["where is", "where's", "where do i find", "where can i find", "in which place is", "where would i find", "where can i see"],
    ["where are", "where do i find", "where can i find", "where would i look for"],
    ["why does", "why", "for what reason does", "how come", "what is the reason that"],
    ["what happens if", "what if", "what happens when", "what do you do when", "what does the server do if", "what will happen if", "what goes on when"],
    ["tell me about", "explain", "describe", "what about", "give me information about", "i want to know about", "info on", "say more about"],
    ["xgen-model", "xgen model", "xgen", "Xgen-Model", "the xgen-model server", "the server", "this program", "this software"],
    ["supported", "available", "accepted", "allowed", "possible", "understood", "usable"],
    ["support", "handle", "understand", "work with", "accept"],
    ["show", "give", "display", "print", "write down"],
    ["change", "set", "modify", "adjust", "alter", "edit"],
    ["start", "run", "launch", "bring up", "fire up"],
    ["mean", "stand for", "signify"],
    ["need", "require"],
    ["needed", "required", "necessary", "mandatory"],
    ["use", "work with", "employ", "make use of"],
    ["used", "employed", "utilised"],
    ["parameter", "option", "field", "argument"],
    ["endpoint", "route", "url"],
    ["happens", "occurs", "takes place"],
    ["config", "configuration", "config file", "configuration file", "settings"],
    ["get", "see", "fetch", "read", "obtain", "receive"],
    ["models.yaml", "my models.yaml", "the models.yaml", "models.yml"],
    ["limit", "restrict", "cap", "bound"],
    ["answer", "reply", "response", "output"],
    ["answers", "replies", "responses", "outputs", "results"],
    ["computer", "machine", "pc", "box", "laptop"],
    ["memory", "ram", "main memory"],
    ["several", "multiple", "more than one", "a few"],
    ["at the same time", "at once", "simultaneously", "in parallel", "together", "concurrently"],
    ["same", "identical", "equal"],
    ["quick", "fast", "rapid"],
    ["large", "big", "huge"],
    ["send", "pass", "give", "supply", "provide", "submit"],
    ["shut down", "terminate", "halt"],
    ["load", "open", "read"],
    ["download", "pull"],
    ["build", "compile"],
    ["error", "failure", "problem", "fault"],
    ["made", "created", "built", "produced"],
    ["find", "locate", "look up", "discover"],
    ["turn off", "disable", "switch off", "deactivate", "get rid of"],
    ["turn on", "enable", "switch on", "activate"],
    ["add", "register", "insert", "put in"],
    ["verify", "validate", "make sure of"],
    ["list", "enumerate"],
    ["maximum", "largest", "highest", "biggest"],
    ["request", "call", "query", "api call"],
    ["requests", "calls", "queries"],
    ["wrong", "incorrect", "bad", "invalid"],
    ["default", "standard", "built-in default"],
    ["example", "sample", "demonstration"],
    ["documentation", "docs", "manual", "documents"],
    ["good for", "used for", "useful for"],
]
SAME_KO = [
    ["어떻게 하나요", "어떻게 해요", "어떻게 해", "어떻게 하죠", "어떻게 합니까", "어떻게 하면 되나요", "어떻게 해야 하나요",
     "어떻게 하면 돼", "어떡해요", "어떡하죠", "어떻게 할까요", "어떻게 하는 거예요", "어떻게 하지"],
    ["하려면", "하고 싶어요", "하고 싶은데", "하려고 해요", "하는 법", "하는 방법", "하려는데", "하려고 하는데요", "하고 싶습니다"],
    ["방법은?", "방법 알려줘", "방법이 뭐야?", "방법이 뭔가요?", "방법을 알려 주세요", "법 알려줘", "방법 좀", "방법이 있나요?", "방법이 궁금해요"],
    ["무엇인가요", "뭐예요", "뭐야", "뭔가요", "무엇입니까", "뭐죠", "뭐지", "뭡니까", "무엇이죠", "뭐임", "뭔지 알려줘", "뭔지 모르겠어요",
     "뭔데", "뭐니", "뭔지 궁금해요", "뭐인가요"],
    ["무엇을", "뭘", "뭐를", "어떤 것을", "무얼"],
    ["무엇이", "뭐가", "어떤 것이", "어떤 게"],
    ["있나요", "있어요", "있어", "있습니까", "있니", "있음", "있는지 알려줘", "있는지 궁금해요", "있을까요", "있죠", "있는 건가요"],
    ["되나요", "돼요", "됩니까", "돼", "되나", "되는지 궁금해요", "될까요", "되는 건가요", "되죠", "되는지 알려 주세요"],
    ["인가요", "이에요", "이야", "입니까", "인지 알려줘", "이죠", "인 건가요", "일까요"],
    ["하나요", "해요", "합니까", "하니", "하는지 알려줘", "할까요", "하는 거예요", "하는지 궁금해요", "하죠"],
    ["수 있나요", "수 있어", "수 있을까요", "수 있는지 알려줘", "수 있습니까", "수 있죠", "수 있어요", "수 있는 건가요", "수 있는지 궁금해요"],
    ["알려줘", "알려 주세요", "알려주세요", "가르쳐줘", "말해줘", "알려줄래", "궁금해", "알고 싶어요", "알려 줄 수 있어", "알려 주실래요"],
    ["설명해줘", "설명해 주세요", "설명해 줘", "설명 부탁해", "자세히 알려줘", "에 대해 알려줘", "쉽게 설명해줘", "설명 좀 해줘"],
    ["보여줘", "보여 주세요", "보여주세요", "좀 보여줘", "출력해줘", "보고 싶어요", "보여 줄래"],
    ["무슨", "어떤", "어느"],
    ["어디", "어느 곳"],
    ["xgen-model", "xgen model", "xgen", "엑스젠 모델", "서버", "이 서버", "이 프로그램"],
    ["지원하나요", "지원해요", "지원해", "지원합니까", "지원되나요", "쓸 수 있나요", "지원하는지 궁금해요", "사용 가능한가요"],
    ["바꾸려면", "변경하려면", "바꾸는 방법", "수정하려면", "바꾸고 싶어", "고치려면", "변경하고 싶어요"],
    ["설정", "지정", "세팅"],
    ["파라미터", "매개변수", "옵션", "인자"],
    ["엔드포인트", "경로", "주소", "endpoint"],
    ["실행", "구동", "시작"],
    ["왜", "어째서", "무엇 때문에"],
    ["쓰나요", "사용하나요", "써요", "사용해요", "쓰죠", "쓸까요", "쓰는 건가요", "씁니까"],
    ["가능한가요", "가능해", "가능해요", "가능합니까", "되나요", "가능할까요"],
    ["필요한가요", "필요해요", "필요해", "필요합니까", "있어야 하나요", "있어야 해요", "필요할까요", "꼭 필요한가요", "없으면 안 되나요"],
    ["필요가 있나요", "해야 하나요", "해야 되나요", "해야 해", "해야 합니까", "해야 할까요", "꼭 해야 해요"],
    ["어떻게 되나요", "어떻게 돼", "어떻게 돼요", "무슨 일이 일어나요", "어떻게 됩니까", "어떻게 되죠", "무슨 일이 생겨"],
    ["무슨 뜻인가요", "무슨 뜻이야", "뜻이 뭐야", "무슨 의미예요", "무슨 말이에요", "의미가 뭐죠"],
    ["동시에", "한꺼번에", "함께", "한 번에", "같이", "병렬로"],
    ["여러 개", "둘 이상", "여럿", "두 개", "여러 가지"],
    ["메모리", "램", "RAM"],
    ["부족", "모자람", "부족함"],
    ["컴퓨터", "PC", "장비", "머신", "노트북", "기계"],
    ["답변", "답", "대답", "응답", "출력"],
    ["결과", "출력", "결과물"],
    ["오류", "에러", "문제"],
    ["나와요", "떠요", "발생해요", "나옵니다", "나오네요", "뜹니다", "생겨요"],
    ["나오나요", "뜨나요", "나와", "생기나요", "나오죠"],
    ["텍스트", "문장"],
    ["요청", "리퀘스트", "호출"],
    ["보내려면", "보내고 싶어요", "전송하려면", "보내는 방법"],
    ["불러오", "로드하", "읽어 오"],
    ["서비스하려면", "띄우려면", "올리려면", "돌리려면", "제공하려면"],
    ["서비스할 수", "띄울 수", "올릴 수", "돌릴 수", "실행할 수"],
    ["끄려면", "비활성화하려면", "안 쓰려면", "끄고 싶어요"],
    ["줄이려면", "낮추려면", "적게 하려면", "줄이고 싶어요"],
    ["늘리려면", "키우려면", "크게 하려면", "늘리고 싶어요"],
    ["목록", "리스트", "종류"],
    ["예시", "예제", "샘플"],
    ["확인하려면", "알아보려면", "점검하려면", "보려면", "확인하고 싶어요"],
    ["얻으려면", "받으려면", "구하려면", "얻고 싶어요"],
    ["얼마인가요", "얼마예요", "얼마야", "몇인가요", "얼마나 되나요"],
    ["걸리나요", "걸려요", "걸려", "걸립니까", "걸릴까요"],
    ["동작하나요", "작동하나요", "돌아가나요", "동작해", "움직이나요", "돌아가요"],
]
# Endings of Korean questions: what ends a sentence in the first column may end in any of the second.
ENDINGS_KO = [
    ("으려면", ["으려고 하는데요", "으려는데 어떻게 하죠", "으려면 뭘 해야 해요", "으려면 어떻게 해야 돼", "으려고요"]),
    ("려면", ["려고 하는데요", "려는데 어떻게 하죠", "려면 뭘 해야 해요", "려면 어떻게 해야 돼", "려면 방법이 있나요", "려고요", "려면 어떻게 해"]),
    ("나요", ["는지 알고 싶어요", "는지 궁금해요", "는지 알려 주세요", "는 건가요", "는 거예요", "는 거죠", "냐", "니", "는가요"]),
    ("을까요", ["을지 모르겠어요", "을지 궁금해요", "으려나", "을까"]),
    ("예요", ["예요, 알려 주세요", "인지 모르겠어요", "인 거예요", "인지요"]),
    ("싶어요", ["싶은데요", "싶습니다", "싶어", "싶은데 어떻게 하나요", "싶은데 방법이 있나요"]),
]
FILLER = {
    "en": (["please ", "hi, ", "hello, ", "hey ", "quick question: ", "can you tell me ", "could you tell me ", "so ", "ok, ", "excuse me, ",
            "i have a question. ", "i'd like to know: ", "question: ", "and ", "sorry, ", "tell me, ", "well, ", "i was wondering, ", "do you know, ",
            "i am new here. ", "stupid question: ", "one more thing: ", "just curious, ", "please tell me, ", "good morning, ", "hm, ", "actually, ",
            "now ", "say, ", "next question: ", "my boss asks: ", "for a project: "],
           [" please", " thanks", " thank you", " in xgen-model", " here", " exactly", " for me", " again", " now", " with xgen-model", ", any advice?",
            ", any ideas?", ", can you help?", ", please explain", " then", " in short", " actually", ", i am new to this", " on this machine",
            ", do you know?", " in general", ", please?", " today", " at all", " by the way", " with this server", ", what do you think?"]),
    "ko": (["저기 ", "안녕하세요, ", "질문이 있어요. ", "혹시 ", "그럼 ", "음 ", "궁금한데 ", "그런데 ", "질문: ", "좀 ", "저, ", "그리고 ", "있잖아요, ",
            "처음인데요, ", "초보인데요, ", "하나만 물어볼게요. ", "혹시나 해서요, ", "그러면 ", "아 참, ", "근데 ", "실례지만 ", "여쭤볼 게 있는데요, ",
            "잠깐만요, ", "혹시요, "],
           [" 알려줘", " 궁금해요", " 부탁해요", " 감사합니다", " 좀", " 알려 주세요", " xgen-model에서", " 도와주세요", " 설명 부탁드려요", " 잘 모르겠어요",
            " 가르쳐 주세요", " 혹시 아세요", " 이 서버에서", " 여기서", " 정확히", " 간단히", " 답해 주세요", " 어떡하죠"]),
}
DROPPABLE = {
    "en": set("the a an of to for in on do does is are can i you me my it its with and by at be this that about tell please when".split()),
    "ko": set("좀 것 수 그 이 더 때 를 을 은 는".split()),
}
PARTICLES = ("에서는", "으로", "에서", "은", "는", "이", "가", "을", "를", "의", "에", "로")


def misspell(word, rng):
    """One slip of the keyboard in a word of plain letters."""
    i = rng.randrange(len(word) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    if kind == 1:
        return word[:i] + word[i + 1 :]
    return word[:i] + word[i] + word[i:]


def reword(question, language, rng):
    """A differently worded, untidier version of a question with the same answer."""
    text = question
    rows = SAME_EN if language == "en" else SAME_KO
    changes = 0
    for row in rng.sample(rows, len(rows)):
        if changes == 3:
            break
        found = [w for w in row if w.lower() in text.lower()]
        if found and rng.random() < 0.5:
            old = max(found, key=len)
            boundary = r"(?<![\w./-])" if language == "en" else r"(?<![A-Za-z0-9_./-])"
            tail = r"(?![\w/-]|\.\w)" if language == "en" or old[-1].isascii() else ""
            text, count = re.subn(boundary + re.escape(old) + tail, lambda _: rng.choice(row), text, count=1, flags=re.I)
            changes += count
    if language == "ko" and rng.random() < 0.3:
        bare = text.rstrip("?.! ")
        for ending, others in ENDINGS_KO:
            if bare.endswith(ending) and len(bare) > len(ending) + 1:
                text = bare[: -len(ending)] + rng.choice(others)
                break
    words = text.split()
    if len(words) > 3 and rng.random() < 0.3:
        drop = [i for i, w in enumerate(words) if w.lower() in DROPPABLE[language]]
        for i in sorted(rng.sample(drop, min(len(drop), rng.randrange(1, 3))), reverse=True):
            del words[i]
    if len(words) > 5 and rng.random() < 0.12:
        del words[rng.randrange(len(words))]
    if len(words) > 4 and rng.random() < 0.08:
        i = rng.randrange(len(words) - 1)
        words[i], words[i + 1] = words[i + 1], words[i]
    if language == "ko" and rng.random() < 0.25:
        for i, word in enumerate(words):
            for particle in PARTICLES:
                if len(word) > len(particle) + 1 and word.endswith(particle) and rng.random() < 0.5:
                    words[i] = word[: -len(particle)]
                    break
    if rng.random() < 0.15:
        plain = [i for i, w in enumerate(words) if w.isalpha() and w.isascii() and len(w) > 4]
        if plain:
            i = rng.choice(plain)
            words[i] = misspell(words[i], rng)
    text = " ".join(words)
    if language == "ko" and rng.random() < 0.2:
        gaps = [i for i, c in enumerate(text) if c == " "]
        for i in sorted(rng.sample(gaps, rng.randrange(0, len(gaps) + 1)), reverse=True):
            if not (text[i - 1].isascii() and text[i + 1].isascii()):
                text = text[:i] + text[i + 1 :]
    before, after = FILLER[language]
    if rng.random() < 0.2:
        text = rng.choice(before) + text[:1].lower() + text[1:]
    if rng.random() < 0.15:
        text = text.rstrip("?.! ") + rng.choice(after)
    shape = rng.random()
    if shape < 0.35:
        text = text.lower()
    elif shape < 0.38:
        text = text.upper()
    elif shape < 0.5:
        text = text[:1].upper() + text[1:]
    end = rng.random()
    if end < 0.3:
        text = text.rstrip("?.! ")
    elif end < 0.55:
        text = text.rstrip("?.! ") + "?"
    elif end < 0.6:
        text = text.rstrip("?.! ") + rng.choice(["??", "!", " ?", "...", "."])
    return text if text.strip() else question


class Sampler:
    """Endless training conversations: (ids, loss mask), the mask marking the tokens that the model writes."""

    def __init__(self, facts, chat, seed, kept=()):
        self.facts, self.chat, self.rng = facts, chat, random.Random(seed)
        self.pool = [(fact, question) for fact in facts for question in fact.questions]
        self.by_language = {lang: [p for p in self.pool if p[0].language == lang] for lang in ("en", "ko")}
        # A question that is listed for another fact, or kept to measure on, is never made by a pattern or by rewording.
        self.owner = {key(question): None for question in kept} | {key(question): fact for fact, question in self.pool}
        self.queue, self.focus = [], {}  # focus: (fact, question) pairs that get more room, as they are listed

    def next_pair(self):
        if self.focus and self.rng.random() < FOCUSED:
            return self.rng.choice(list(self.focus))
        if not self.queue:
            self.queue = self.pool[:]
            self.rng.shuffle(self.queue)
        return self.queue.pop()

    def conversation(self):
        rng, chat = self.rng, self.chat
        pairs = [self.next_pair()]
        kind = rng.random()
        if kind > 0.9:
            # Earlier turns are mostly in the same language, as real conversations are.
            for _ in range(rng.choice([1, 1, 1, 2, 2, 3])):
                pool = self.by_language[pairs[0][0].language] if rng.random() < 0.8 else self.pool
                pairs.append(rng.choice(pool))
        ids, mask = [], []
        if rng.random() < 0.15:
            ids += chat.turn("system", rng.choice(SYSTEM_PROMPTS))
            mask += [0] * len(ids)
        for fact, question in pairs:
            cut = 0.0
            focused = (fact, question) in self.focus
            if not focused and fact.patterns and rng.random() < 0.6:
                other = expand(rng.choice(fact.patterns), rng)
                if self.owner.get(key(other), fact) is fact:
                    question = other
            if not focused and rng.random() < 0.6:
                other = reword(question, fact.language, rng)
                if self.owner.get(key(other), fact) is fact:
                    question = other
                cut = rng.choice([0.0, 0.0, 0.05])
            prefix, answer = chat.reply(fact.answer)
            asked = chat.turn("user", question, cut, rng)
            ids += asked + prefix + answer + chat.newline
            mask += [0] * (len(asked) + len(prefix)) + [1] * len(answer) + [0] * len(chat.newline)
        # What is hard is to find the answer, which its first tokens tell; the rest of it is soon known by heart.
        if rng.random() < SHORTENED and len(answer) > OPENING:
            excess = len(answer) - OPENING + len(chat.newline)
            ids, mask = ids[:-excess], mask[:-excess]
        return ids, mask


def single_turn(chat, fact, question, system=None):
    """(prompt ids, answer ids) of one question without any rewording."""
    prefix, answer = chat.reply(fact.answer)
    head = chat.turn("system", system) if system else []
    return head + chat.turn("user", question) + prefix, answer
