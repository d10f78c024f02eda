#include "text/pre_tokenizer.h"

#include <algorithm>

#include "text/token_model.h"
#include "text/unicode.h"
#include "text/word_patterns.h"

namespace xgen::text {
namespace {

using Kind = PreTokenizerStep::Kind;

// Turns the delimiters found in `span` into words. `matches` are relative to the text, sorted, apart from each other.
void split_by(const std::vector<Span>& matches, Span span, SplitBehaviour behaviour, bool invert,
              std::vector<Span>& words) {
  const std::size_t first_word = words.size();
  bool previous = false;  // the last range was a delimiter
  bool any = false;
  const auto push = [&](std::size_t begin, std::size_t end) {
    if (end > begin) words.push_back({begin, end});
  };
  // merged_with_next looks ahead: a delimiter waits here for the range that follows it.
  Span waiting{};
  bool has_waiting = false;
  const auto take = [&](std::size_t begin, std::size_t end, bool delimiter) {
    delimiter = delimiter != invert;
    switch (behaviour) {
      case SplitBehaviour::removed:
        if (!delimiter) push(begin, end);
        break;
      case SplitBehaviour::isolated:
        push(begin, end);
        break;
      case SplitBehaviour::merged_with_previous:
        if (delimiter && !previous && words.size() > first_word && any) {
          words.back().end = end;
        } else {
          push(begin, end);
        }
        break;
      case SplitBehaviour::merged_with_next:
        if (delimiter) {
          if (has_waiting) push(waiting.begin, waiting.end);
          waiting = {begin, end};
          has_waiting = true;
        } else {
          push(has_waiting ? waiting.begin : begin, end);
          has_waiting = false;
        }
        break;
      case SplitBehaviour::contiguous:
        if (delimiter == previous && words.size() > first_word && any) {
          words.back().end = end;
        } else {
          push(begin, end);
        }
        break;
    }
    previous = delimiter;
    any = true;
  };
  std::size_t from = span.begin;
  for (const Span& m : matches) {
    if (m.begin > from) take(from, m.begin, false);
    take(m.begin, m.end, true);
    from = m.end;
  }
  if (from < span.end) take(from, span.end, false);
  if (has_waiting) push(waiting.begin, waiting.end);
}

// Every character of `span` for which is(c) holds is a match of its own.
template <class F>
void match_chars(std::string_view text, Span span, std::vector<Span>& matches, F&& is) {
  for (std::size_t i = span.begin; i < span.end;) {
    const std::size_t begin = i;
    if (is(next_code_point(text, i))) matches.push_back({begin, i});
  }
}

Status match_regex(const Regex& regex, std::string_view text, Span span, std::vector<Span>& matches) {
  const std::size_t first = matches.size();
  if (Status s = regex.find_all(text.substr(span.begin, span.end - span.begin), matches); !s) return s;
  for (std::size_t i = first; i < matches.size(); ++i) {
    matches[i].begin += span.begin;
    matches[i].end += span.begin;
  }
  return {};
}

class Run {
 public:
  Run(Words& words, bool at_start) : words_(words), at_start_(at_start) {}

  // Cuts every word at what find(span, matches) finds in it.
  template <class F>
  Status cut(SplitBehaviour behaviour, bool invert, F&& find) {
    words_.spare_spans.clear();
    for (const Span& span : words_.spans) {
      words_.matches.clear();
      if (Status s = find(span, words_.matches); !s) return s;
      split_by(words_.matches, span, behaviour, invert, words_.spare_spans);
    }
    words_.spans.swap(words_.spare_spans);
    at_start_ = at_start_ && !words_.spans.empty() && words_.spans[0].begin == 0;
    return {};
  }

  // Rewrites every word by rewrite(word, is_first_of_input, out).
  template <class F>
  void rewrite(F&& fn) {
    std::string& out = words_.spare_text;
    out.clear();
    out.reserve(words_.text.size() * 5 / 4 + 16);
    bool first = at_start_;
    for (Span& span : words_.spans) {
      const std::size_t begin = out.size();
      fn(std::string_view(words_.text).substr(span.begin, span.end - span.begin), first, out);
      span = {begin, out.size()};
      first = false;
    }
    words_.text.swap(out);
  }

  Status step(const PreTokenizerStep& s) {
    const auto chars = [&](auto is) {
      return [this, is](Span span, std::vector<Span>& matches) -> Status {
        match_chars(words_.text, span, matches, is);
        return {};
      };
    };
    const auto regex = [&](Span span, std::vector<Span>& matches) {
      return match_regex(*s.regex, words_.text, span, matches);
    };
    switch (s.kind) {
      case Kind::byte_level: {
        if (s.add_prefix_space) {
          rewrite([](std::string_view word, bool, std::string& out) {
            if (!word.starts_with(' ')) out += ' ';
            out += word;
          });
        }
        if (s.regex) {
          if (Status status = cut(SplitBehaviour::isolated, false, regex); !status) return status;
        }
        if (s.map_bytes) rewrite([](std::string_view word, bool, std::string& out) { append_byte_level(out, word); });
        return {};
      }
      case Kind::split_regex:
      case Kind::unicode_scripts:
        return cut(s.behaviour, s.invert, regex);
      case Kind::split_string:
        return cut(s.behaviour, s.invert, [&](Span span, std::vector<Span>& matches) -> Status {
          if (s.pattern.empty()) return {};
          const std::string_view word = std::string_view(words_.text).substr(0, span.end);
          for (std::size_t at = word.find(s.pattern, span.begin); at != std::string_view::npos;
               at = word.find(s.pattern, at + s.pattern.size())) {
            matches.push_back({at, at + s.pattern.size()});
          }
          return {};
        });
      case Kind::whitespace:
        return cut(SplitBehaviour::removed, false, chars(is_white_space));
      case Kind::bert:
        if (Status status = cut(SplitBehaviour::removed, false, chars(is_white_space)); !status) return status;
        return cut(SplitBehaviour::isolated, false,
                   chars([](char32_t c) { return is_ascii_punctuation(c) || is_punctuation(c); }));
      case Kind::punctuation:
        return cut(s.behaviour, false, chars([](char32_t c) { return is_ascii_punctuation(c) || is_punctuation(c); }));
      case Kind::digits:
        return cut(s.individual ? SplitBehaviour::isolated : SplitBehaviour::contiguous, false, chars(is_numeric));
      case Kind::metaspace: {
        rewrite([&](std::string_view word, bool first, std::string& out) {
          const bool prefix = s.prepend == PrependScheme::always || (s.prepend == PrependScheme::first && first);
          if (prefix && !word.starts_with(' ') && !word.starts_with(s.pattern)) out += s.pattern;
          for (const char c : word) {
            if (c == ' ') {
              out += s.pattern;
            } else {
              out += c;
            }
          }
        });
        if (!s.split) return {};
        PreTokenizerStep by_blank;
        by_blank.kind = Kind::split_string;
        by_blank.pattern = s.pattern;
        by_blank.behaviour = SplitBehaviour::merged_with_next;
        return step(by_blank);
      }
      case Kind::fixed_length:
        return cut(SplitBehaviour::isolated, false, [&](Span span, std::vector<Span>& matches) -> Status {
          std::size_t begin = span.begin, chars_seen = 0;
          for (std::size_t i = span.begin; i < span.end;) {
            next_code_point(words_.text, i);
            if (++chars_seen == s.length || i >= span.end) {
              matches.push_back({begin, i});
              begin = i;
              chars_seen = 0;
            }
          }
          return {};
        });
    }
    return {};
  }

 private:
  Words& words_;
  bool at_start_;
};

}  // namespace

Status PreTokenizer::apply(Words& words, bool at_start) const {
  words.spans.clear();
  if (!words.text.empty()) words.spans.push_back({0, words.text.size()});
  Run run(words, at_start);
  for (const PreTokenizerStep& step : steps) {
    if (Status s = run.step(step); !s) return s;
  }
  return {};
}

Result<Regex> gpt2_regex() { return Regex::compile(kGpt2Pattern, RegexFlavour::oniguruma); }

Result<Regex> script_runs_regex() {
  // Scripts of Unicode 13 and before, without those that Han swallows.
  constexpr std::string_view scripts[] = {"Adlam",
                                          "Ahom",
                                          "Anatolian_Hieroglyphs",
                                          "Arabic",
                                          "Armenian",
                                          "Avestan",
                                          "Balinese",
                                          "Bamum",
                                          "Bassa_Vah",
                                          "Batak",
                                          "Bengali",
                                          "Bhaiksuki",
                                          "Bopomofo",
                                          "Brahmi",
                                          "Braille",
                                          "Buginese",
                                          "Buhid",
                                          "Canadian_Aboriginal",
                                          "Carian",
                                          "Caucasian_Albanian",
                                          "Chakma",
                                          "Cham",
                                          "Cherokee",
                                          "Common",
                                          "Coptic",
                                          "Cuneiform",
                                          "Cypriot",
                                          "Cyrillic",
                                          "Deseret",
                                          "Devanagari",
                                          "Duployan",
                                          "Egyptian_Hieroglyphs",
                                          "Elbasan",
                                          "Ethiopic",
                                          "Georgian",
                                          "Glagolitic",
                                          "Gothic",
                                          "Grantha",
                                          "Greek",
                                          "Gujarati",
                                          "Gurmukhi",
                                          "Hangul",
                                          "Hanunoo",
                                          "Hatran",
                                          "Hebrew",
                                          "Imperial_Aramaic",
                                          "Inherited",
                                          "Inscriptional_Pahlavi",
                                          "Inscriptional_Parthian",
                                          "Javanese",
                                          "Kaithi",
                                          "Kannada",
                                          "Kayah_Li",
                                          "Kharoshthi",
                                          "Khmer",
                                          "Khojki",
                                          "Khudawadi",
                                          "Lao",
                                          "Latin",
                                          "Lepcha",
                                          "Limbu",
                                          "Linear_A",
                                          "Linear_B",
                                          "Lisu",
                                          "Lycian",
                                          "Lydian",
                                          "Mahajani",
                                          "Malayalam",
                                          "Mandaic",
                                          "Manichaean",
                                          "Marchen",
                                          "Meetei_Mayek",
                                          "Mende_Kikakui",
                                          "Meroitic_Cursive",
                                          "Meroitic_Hieroglyphs",
                                          "Miao",
                                          "Modi",
                                          "Mongolian",
                                          "Mro",
                                          "Multani",
                                          "Myanmar",
                                          "Nabataean",
                                          "New_Tai_Lue",
                                          "Newa",
                                          "Nko",
                                          "Ogham",
                                          "Ol_Chiki",
                                          "Old_Hungarian",
                                          "Old_Italic",
                                          "Old_North_Arabian",
                                          "Old_Permic",
                                          "Old_Persian",
                                          "Old_South_Arabian",
                                          "Old_Turkic",
                                          "Oriya",
                                          "Osage",
                                          "Osmanya",
                                          "Pahawh_Hmong",
                                          "Palmyrene",
                                          "Pau_Cin_Hau",
                                          "Phags_Pa",
                                          "Phoenician",
                                          "Psalter_Pahlavi",
                                          "Rejang",
                                          "Runic",
                                          "Samaritan",
                                          "Saurashtra",
                                          "Sharada",
                                          "Shavian",
                                          "Siddham",
                                          "SignWriting",
                                          "Sinhala",
                                          "Sora_Sompeng",
                                          "Sundanese",
                                          "Syloti_Nagri",
                                          "Syriac",
                                          "Tagalog",
                                          "Tagbanwa",
                                          "Tai_Le",
                                          "Tai_Tham",
                                          "Tai_Viet",
                                          "Takri",
                                          "Tamil",
                                          "Tangut",
                                          "Telugu",
                                          "Thaana",
                                          "Thai",
                                          "Tibetan",
                                          "Tifinagh",
                                          "Tirhuta",
                                          "Ugaritic",
                                          "Vai",
                                          "Warang_Citi",
                                          "Yi"};
  // Blanks and characters without a script belong to the run before them; U+30FC, the long vowel mark, is Common by
  // property but counts as Han.
  constexpr std::string_view any = " \\p{Unknown}";
  const std::string han = "\\p{Han}\\p{Hiragana}\\p{Katakana}\\x{30FC}";
  std::string pattern = "[" + han + "][" + han + std::string(any) + "]*";
  for (const std::string_view script : scripts) {
    const std::string set = "\\p{" + std::string(script) + "}";
    const std::string run = "[" + set + std::string(any) + "]";
    if (script == "Common") {
      pattern.append("|(?![ \\x{30FC}])").append(set).append("(?:(?!\\x{30FC})").append(run).append(")*");
    } else {
      pattern.append("|").append(set).append(run).append("*");
    }
  }
  return Regex::compile(pattern, RegexFlavour::oniguruma);
}

}  // namespace xgen::text
