#include "text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "text/unicode.h"

namespace xgen::text {
namespace {

// PCRE2's \s also takes U+180E, and its \w leaves out marks: these are the Unicode sets that Oniguruma and Rust mean.
constexpr std::string_view kSpaceSet =
    "\\x09-\\x0D\\x20\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";
constexpr std::string_view kWordSet =
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{200C}\\x{200D}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}"
    "\\x{1F170}-\\x{1F189}";

// Rewrites what differs between the flavours; everything else passes through to PCRE2, which judges it.
class Translator {
 public:
  Translator(std::string_view in, RegexFlavour flavour) : in_(in), flavour_(flavour) {}

  std::string run() {
    // A run of blanks not at the end fails at each of its positions in turn, which is quadratic: skip the run instead.
    if (in_ == "\\s+$") return "[" + std::string(kSpaceSet) + "]++(*SKIP)$";
    while (pos_ < in_.size()) {
      const char c = in_[pos_];
      if (c == '\\') {
        atom_ = out_.size();
        escape(false);
      } else if (c == '[') {
        atom_ = out_.size();
        bracket();
      } else if (c == '(') {
        groups_.push_back(out_.size());
        out_ += c;
        ++pos_;
      } else if (c == ')') {
        atom_ = groups_.empty() ? out_.size() : groups_.back();
        if (!groups_.empty()) groups_.pop_back();
        out_ += c;
        ++pos_;
      } else if (c == '{') {
        interval();
      } else if (c == '*' || c == '+' || c == '?' || c == '|') {
        out_ += c;
        ++pos_;
      } else {
        atom_ = out_.size();
        const std::size_t n = std::min(utf8_length(c), in_.size() - pos_);
        out_ += in_.substr(pos_, n);
        pos_ += n;
      }
    }
    return std::move(out_);
  }

 private:
  void escape(bool in_bracket) {
    if (pos_ + 1 >= in_.size()) {
      out_ += in_[pos_++];
      return;
    }
    const char c = in_[pos_ + 1];
    pos_ += 2;
    const auto set = [&](std::string_view chars, bool negated) {
      if (in_bracket) {
        out_ += chars;
      } else {
        (out_ += negated ? "[^" : "[").append(chars) += ']';
      }
    };
    if (c == 's') {
      set(kSpaceSet, false);
    } else if (c == 'w') {
      set(kWordSet, false);
    } else if (c == 'S' && !in_bracket) {
      set(kSpaceSet, true);
    } else if (c == 'W' && !in_bracket) {
      set(kWordSet, true);
    } else if (c == 'h' && flavour_ == RegexFlavour::oniguruma) {
      set("0-9A-Fa-f", false);
    } else if (c == 'u') {
      if (pos_ < in_.size() && in_[pos_] == '{') {
        out_ += "\\x";  // \u{1F600}
      } else {
        (out_ += "\\x{").append(in_.substr(pos_, 4)) += '}';
        pos_ = std::min(pos_ + 4, in_.size());
      }
    } else if ((c == 'p' || c == 'P') && pos_ < in_.size() && in_[pos_] == '{') {
      const std::size_t close = std::min(in_.find('}', pos_), in_.size() - 1);
      (out_ += '\\') += c;
      property(in_.substr(pos_, close + 1 - pos_));
      pos_ = close + 1;
    } else {
      (out_ += '\\') += c;
    }
  }

  // {Name} of \p. PCRE2 reads a script's name as Script_Extensions, the others as Script; long names of categories are
  // unknown to it.
  void property(std::string_view braced) {
    constexpr std::string_view categories[][2] = {{"Letter", "L"},
                                                  {"Lowercase_Letter", "Ll"},
                                                  {"Uppercase_Letter", "Lu"},
                                                  {"Titlecase_Letter", "Lt"},
                                                  {"Modifier_Letter", "Lm"},
                                                  {"Other_Letter", "Lo"},
                                                  {"Mark", "M"},
                                                  {"Number", "N"},
                                                  {"Decimal_Number", "Nd"},
                                                  {"Punctuation", "P"},
                                                  {"Symbol", "S"},
                                                  {"Separator", "Z"},
                                                  {"Space_Separator", "Zs"},
                                                  {"Other", "C"},
                                                  {"Control", "Cc"}};
    std::string_view name = braced.substr(1, braced.size() < 2 ? 0 : braced.size() - 2);
    out_ += '{';
    if (name.starts_with('^')) {
      out_ += '^';
      name.remove_prefix(1);
    }
    for (const auto& [full, brief] : categories) {
      if (name == full) name = brief;
    }
    if (name.size() > 2 && name.find_first_of(":=&") == std::string_view::npos) {
      const std::string script = "\\p{sc:" + std::string(name) + "}";
      int code = 0;
      std::size_t offset = 0;
      pcre2_code* known = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(script.data()), script.size(),
                                        PCRE2_UTF | PCRE2_UCP, &code, &offset, nullptr);
      if (known != nullptr) out_ += "sc:";
      pcre2_code_free(known);
    }
    (out_ += name) += '}';
  }

  // A bracket class. [A&&[^B]] (intersection) becomes (?:(?![B])[A]).
  void bracket() {
    const std::size_t start = out_.size();
    out_ += in_[pos_++];
    if (pos_ < in_.size() && in_[pos_] == '^') out_ += in_[pos_++];
    if (pos_ < in_.size() && in_[pos_] == ']') {
      out_ += "\\]";
      ++pos_;
    }
    while (pos_ < in_.size() && in_[pos_] != ']') {
      if (in_[pos_] == '\\') {
        escape(true);
      } else if (in_.substr(pos_).starts_with("[:")) {
        const std::size_t close = std::min(in_.find(":]", pos_), in_.size() - std::min<std::size_t>(2, in_.size()));
        const std::string_view name = in_.substr(pos_, close + 2 - pos_);
        if (name == "[:punct:]") {
          out_ += flavour_ == RegexFlavour::oniguruma ? "\\p{P}\\p{S}" : "!-\\/:-@\\[-`{-~";
        } else {
          out_ += name;
        }
        pos_ = close + 2;
      } else if (in_.substr(pos_).starts_with("&&[^")) {
        const std::string left = out_.substr(start);
        out_.resize(start);
        out_ += "(?:(?!";
        pos_ += 2;
        const std::size_t right = out_.size();
        bracket();
        out_.erase(right + 1, 1);  // [^B] -> [B]
        ((out_ += ')') += left) += "])";
        if (pos_ < in_.size()) ++pos_;
        return;
      } else if (in_[pos_] == '[') {
        out_ += "\\[";
        ++pos_;
      } else {
        out_ += in_[pos_++];
      }
    }
    if (pos_ < in_.size()) {
      out_ += ']';
      ++pos_;
    }
  }

  // {n,m}, which Oniguruma never reads as possessive when a + follows.
  void interval() {
    const std::size_t close = in_.find('}', pos_);
    if (close == std::string_view::npos) {
      out_ += in_[pos_++];
      return;
    }
    out_ += in_.substr(pos_, close + 1 - pos_);
    pos_ = close + 1;
    if (flavour_ == RegexFlavour::oniguruma && pos_ < in_.size() && in_[pos_] == '+') {
      out_.insert(atom_, "(?:");
      out_ += ')';
    }
  }

  std::string_view in_;
  RegexFlavour flavour_;
  std::size_t pos_ = 0;
  std::size_t atom_ = 0;  // where in out_ the last atom begins
  std::vector<std::size_t> groups_;
  std::string out_;
};

// What a match needs besides the pattern, once per thread.
struct MatchState {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, 16 << 20, nullptr);

  MatchState() {
    pcre2_set_match_limit(context, 50'000'000);
    pcre2_set_heap_limit(context, 64 << 10);  // KiB
    pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~MatchState() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
  MatchState(const MatchState&) = delete;
  MatchState& operator=(const MatchState&) = delete;
};

}  // namespace

Result<Regex> Regex::compile(std::string_view pattern, RegexFlavour flavour) {
  constexpr std::size_t kMaxPattern = 64 << 10;
  if (pattern.size() > kMaxPattern) return make_error(ErrorCode::too_large, "a regular expression over 64 KiB");
  const std::string translated = Translator(pattern, flavour).run();
  const std::uint32_t anchors = flavour == RegexFlavour::oniguruma ? PCRE2_MULTILINE : PCRE2_DOLLAR_ENDONLY;
  int code = 0;
  std::size_t offset = 0;
  std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), 100);
  pcre2_code* compiled =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | anchors, &code, &offset, context.get());
  if (compiled == nullptr) {
    PCRE2_UCHAR message[160] = {};
    pcre2_get_error_message(code, message, sizeof message);
    return make_error(ErrorCode::invalid_argument, "regular expression '" + std::string(pattern.substr(0, 200)) +
                                                       "': " + reinterpret_cast<const char*>(message));
  }
  Regex regex;
  regex.code_ = std::shared_ptr<void>(compiled, [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); });
  // Where JIT is not to be had (no executable memory), the interpreter does the same work.
  pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);
  return regex;
}

Status Regex::find_all(std::string_view text, std::vector<Span>& matches) const {
  static thread_local MatchState state;
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  std::size_t from = 0;
  std::size_t last_end = std::string_view::npos;
  while (from <= text.size()) {
    int rc = pcre2_match(code, subject, text.size(), from, PCRE2_NO_UTF_CHECK, state.data, state.context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
      rc = pcre2_match(code, subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, state.data, state.context);
    }
    if (rc == PCRE2_ERROR_NOMATCH) break;
    if (rc < 0) {
      return make_error(ErrorCode::too_large,
                        "the tokenizer's regular expression takes too long on this text (" + std::to_string(rc) + ")");
    }
    const std::size_t* found = pcre2_get_ovector_pointer(state.data);
    const Span span{found[0], found[1]};
    if (span.begin == span.end) {
      // An empty match next to the one before is none.
      if (span.begin != last_end) matches.push_back(span);
      if (span.end >= text.size()) break;
      from = span.end + utf8_length(text[span.end]);
    } else {
      if (span.end < span.begin) break;  // \K in a look-ahead
      matches.push_back(span);
      from = span.end;
    }
    last_end = span.end;
  }
  return {};
}

}  // namespace xgen::text
