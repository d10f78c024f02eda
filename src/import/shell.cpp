#include "import/shell.h"

#include <algorithm>
#include <cctype>
#include <iterator>
#include <optional>
#include <utility>

namespace xgen::importer {
namespace {

bool is_name_char(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }
bool is_name(std::string_view text) {
  return !text.empty() && std::isdigit(static_cast<unsigned char>(text[0])) == 0 &&
         std::all_of(text.begin(), text.end(), is_name_char);
}

// What stands at a '$'.
struct Piece {
  std::size_t size = 1;              // of the text that it takes
  std::optional<std::string> value;  // empty: it stays as it is
};

constexpr std::size_t kMaxSubstitution = 4096;  // bytes; a longer one counts as not closed
constexpr std::size_t kMaxValue = 4096;         // bytes of a variable; a longer one counts as not known
constexpr std::size_t kMaxPutIn = 1 << 20;      // bytes of all values that a text gets
constexpr int kMaxUnended = 16;                 // here-documents without an end that are looked for
constexpr int kMaxNested = 8;                   // defaults within defaults, and scripts within scripts

std::size_t closing(std::string_view text, std::size_t open, char left, char right) {
  int depth = 0;
  for (std::size_t i = open; i < std::min(text.size(), kMaxSubstitution); ++i) {
    if (text[i] == left) ++depth;
    if (text[i] == right && --depth == 0) return i;
  }
  return std::string_view::npos;
}

// ${NAME#TEXT}, ${NAME##*TEXT}, ${NAME%TEXT*}, …: `rest` begins with the first # or %. Nothing, where the pattern is
// more than a text with one * on its inner side.
std::optional<std::string> stripped(std::string value, std::string_view rest) {
  const bool front = rest[0] == '#';
  const bool longest = rest.size() > 1 && rest[1] == rest[0];
  rest.remove_prefix(longest ? 2 : 1);
  const bool star = front ? rest.starts_with('*') : rest.ends_with('*');
  if (star) rest = front ? rest.substr(1) : rest.substr(0, rest.size() - 1);
  if (rest.empty() || rest.find_first_of("*?[\\'\"$`") != std::string_view::npos) return {};
  if (!star) {
    if (front && value.starts_with(rest)) return value.substr(rest.size());
    return value.substr(0, value.size() - (!front && value.ends_with(rest) ? rest.size() : 0));
  }
  const std::size_t at = front == longest ? value.rfind(rest) : value.find(rest);
  if (at == std::string::npos) return value;
  return front ? value.substr(at + rest.size()) : value.substr(0, at);
}

// What ${NAME…} stands for, by the variable's value and what follows its name.
std::optional<std::string> parameter(std::optional<std::string> value, std::string_view rest, const Variables& known) {
  if (rest.empty()) return value;
  if (value && (rest[0] == '#' || rest[0] == '%')) return stripped(*std::move(value), rest);
  const bool or_empty = rest[0] == ':';
  if (or_empty) rest.remove_prefix(1);
  if (rest.empty() || std::string_view("-=?").find(rest[0]) == std::string_view::npos) return {};
  if (value && !(or_empty && value->empty())) return value;
  if (rest[0] == '?' || rest.find_first_of("\\'\"`") != std::string_view::npos) return {};
  Word fallback = expand(rest.substr(1), known, false);
  return fallback.open ? std::optional<std::string>() : std::move(fallback.text);
}

// What is shown of a variable or command that stays: of a command its program alone, as the rest may hold secrets.
std::string left_text(std::string_view text) {
  const std::size_t begin = text.starts_with('`') ? 1 : text.starts_with("$(") && !text.starts_with("$((") ? 2 : 0;
  const std::size_t first = text.find_first_not_of(" \t\n", begin);
  const std::size_t end = first == std::string_view::npos ? first : text.find_first_of(" \t\n", first);
  if (begin == 0 || end == std::string_view::npos) return std::string(text);
  const std::string_view program = text.substr(first, end - first);
  return std::string(text.substr(0, begin)) + (is_assignment(program) ? "" : std::string(program) + " ") + "…" +
         text.back();
}

// text[0] is '$'.
Piece at_dollar(std::string_view text, const Variables& known, bool kubernetes) {
  const auto value_of = [&](std::string_view name) -> std::optional<std::string> {
    const auto found = known.find(std::string(name));
    return found == known.end() || found->second.size() > kMaxValue ? std::optional<std::string>() : found->second;
  };
  if (text.size() < 2) return {1, "$"};
  if (text[1] == '(') {
    const std::size_t end = closing(text, 1, '(', ')');
    if (end == std::string_view::npos) return {1, {}};
    return {end + 1, kubernetes ? value_of(text.substr(2, end - 2)) : std::nullopt};
  }
  if (kubernetes) return {1, "$"};
  if (text[1] == '{') {
    const std::size_t end = closing(text, 1, '{', '}');
    if (end == std::string_view::npos) return {1, {}};
    const std::string_view inside = text.substr(2, end - 2);
    if (std::count(inside.begin(), inside.end(), '{') > kMaxNested) return {end + 1, {}};
    std::size_t i = 0;
    while (i < inside.size() && is_name_char(inside[i])) ++i;
    if (i == 0) return {end + 1, {}};
    return {end + 1, parameter(value_of(inside.substr(0, i)), inside.substr(i), known)};
  }
  std::size_t i = 1;
  while (i < text.size() && is_name_char(text[i])) ++i;
  if (i == 1) return {text[1] == '@' || text[1] == '*' ? 2u : 1u, {}};
  return {i, value_of(text.substr(1, i - 1))};
}

class Splitter {
 public:
  Splitter(std::string_view text, std::string file, int line, Variables known, int depth = 0)
      : text_(text), file_(std::move(file)), line_(line), known_(std::move(known)), depth_(depth) {}

  Result<std::vector<Command>> run() {
    while (at_ < text_.size()) {
      if (Status status = step(); !status) return std::move(status).error();
    }
    if (array_) return unclosed("the parenthesis (", array_->line).error();
    end_command();
    return std::move(commands_);
  }

 private:
  char look(std::size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }

  Status step() {
    const char c = look();
    if (c == '\n') {
      if (array_)
        end_word();
      else
        end_command();
      ++line_;
      if (!documents_.empty()) {
        ++at_;
        return pass_documents();
      }
    } else if (c == '(' && begins_array()) {
      array_ = std::exchange(word_, {});
      in_word_ = false;
    } else if (c == ')' && array_) {
      end_array();
    } else if (c == '\\' && (look(1) == '\n' || (look(1) == '\r' && look(2) == '\n'))) {
      at_ += look(1) == '\n' ? 1 : 2;
      ++line_;
    } else if (std::isspace(static_cast<unsigned char>(c)) != 0) {
      end_word();
    } else if (c == '#' && !in_word_) {
      while (at_ < text_.size() && look() != '\n') ++at_;
      return {};
    } else if (!array_ && (c == ';' || c == '|' || (c == '&' && look(1) != '>'))) {
      end_command();
    } else if (!array_ && (c == '>' || c == '<' || c == '&')) {
      redirect();
      return {};
    } else if (c == '\'' || c == '"') {
      return quote(c);
    } else if (c == '\\' && at_ + 1 < text_.size()) {
      add(text_[++at_]);
    } else if (c == '$') {
      variable(false);
      return {};
    } else if (c == '`') {
      return backquoted();
    } else {
      add(c);
    }
    ++at_;
    return {};
  }

  Status unclosed(const std::string& mark, int line) const {
    return make_error(ErrorCode::invalid_argument, file_ + ":" + std::to_string(line) + ": " + mark + " is not closed");
  }

  Status backquoted() {
    const std::size_t end = text_.find('`', at_ + 1);
    if (end == std::string_view::npos) return unclosed("the quote `", line_);
    leave(text_.substr(at_, end + 1 - at_));
    at_ = end + 1;
    return {};
  }

  Status quote(char mark) {
    const int begin = line_;
    in_word_ = true;
    word_.line = word_.line == 0 ? line_ : word_.line;
    for (++at_; at_ < text_.size(); ++at_) {
      const char c = look();
      if (c == mark) {
        ++at_;
        return {};
      }
      if (c == '\n') ++line_;
      if (mark == '"' && c == '`') {
        if (Status status = backquoted(); !status) return status;
        --at_;
      } else if (mark == '"' && c == '\\' && at_ + 1 < text_.size() &&
                 std::string_view("\"\\$`\n").find(look(1)) != std::string_view::npos) {
        ++at_;
        if (look() == '\n')
          ++line_;
        else
          add(look());
      } else if (mark == '"' && c == '$') {
        variable(true);
        --at_;
      } else {
        add(c);
      }
    }
    return unclosed(std::string("the quote ") + mark, begin);
  }

  void variable(bool in_quotes) {
    const Piece piece = at_dollar(text_.substr(at_), known_, false);
    const std::string_view text = text_.substr(at_, piece.size);
    at_ += piece.size;
    const bool whole = text.starts_with("${") && (text.ends_with("[@]}") || text.ends_with("[*]}"));
    const auto array = whole ? arrays_.find(std::string(text.substr(2, text.size() - 6))) : arrays_.end();
    if (array != arrays_.end()) return put_in(array->second, text);
    if (!piece.value || (put_in_ += piece.value->size()) > kMaxPutIn) return leave(text);
    for (const char c : *piece.value) {
      if (!in_quotes && std::isspace(static_cast<unsigned char>(c)) != 0)
        end_word();
      else
        add(c);
    }
  }

  // The words of an array, the last of which goes on.
  void put_in(const std::vector<Word>& words, std::string_view text) {
    for (const Word& each : words) put_in_ += each.text.size() + 1;
    if (put_in_ > kMaxPutIn) return leave(text);
    if (words.empty() && word_.text.empty()) in_word_ = false;
    for (std::size_t i = 0; i < words.size(); ++i) {
      if (i > 0) end_word();
      if (word_.text.empty()) word_.line = words[i].line;
      in_word_ = true;
      word_.text += words[i].text;
      word_.open = word_.open || words[i].open;
    }
  }

  // NAME=( or NAME+=(
  bool begins_array() const {
    std::string_view name = word_.text;
    if (!name.ends_with('=') || array_) return false;
    name.remove_suffix(name.ends_with("+=") ? 2 : 1);
    return is_name(name);
  }

  void end_array() {
    end_word();
    std::string name = array_->text.substr(0, array_->text.find_first_of("+="));
    std::vector<Word>& array = arrays_[name];
    if (!array_->text.ends_with("+=")) array.clear();
    array.insert(array.end(), std::make_move_iterator(array_words_.begin()),
                 std::make_move_iterator(array_words_.end()));
    array_words_.clear();
    // Its words are shown where they are used; as a text it is not known.
    word_ = {name + "=(…)", array_->line, true, false};
    in_word_ = true;
    array_.reset();
    end_word();
  }

  void leave(std::string_view text) {
    for (const char c : left_text(text)) add(c);
    line_ += static_cast<int>(std::count(text.begin(), text.end(), '\n'));
    word_.open = true;
  }

  // "2>&1", "> file", "&> file": one word, with its number and target.
  void redirect() {
    if (word_.text.find_first_not_of("0123456789") != std::string::npos) end_word();
    const std::size_t begin = word_.text.size();
    while (look() == '>' || look() == '<' || look() == '&') add(text_[at_++]);
    const std::string mark = word_.text.substr(begin);
    const bool document = mark == "<<";
    const bool tabs = document && look() == '-';
    if (tabs) add(text_[at_++]);
    const bool target = word_.text.back() != '&' || !std::isdigit(static_cast<unsigned char>(look()));
    if (target && look() == ' ') add(' ');
    while (target && look() == ' ') ++at_;
    const std::size_t name = word_.text.size();
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(look())) == 0 && look() != ';') {
      const std::size_t end = look() == '\'' || look() == '"' ? text_.find(look(), at_ + 1) : std::string_view::npos;
      if (end != std::string_view::npos) {
        for (++at_; at_ < end; ++at_) add(look());
        ++at_;
      } else if (look() == '\'' || look() == '"' || look() == '\\') {
        ++at_;
      } else {
        add(text_[at_++]);
      }
    }
    if (document && word_.text.size() > name) documents_.push_back({word_.text.substr(name), tabs, runs_shell()});
    if (mark == "<<<") word_.text.resize(name);  // a text, which may be a secret
    word_.redirect = true;
    end_word();
  }

  // Whether what the command reads is a script.
  bool runs_shell() const {
    return std::any_of(command_.words.begin(), command_.words.end(), [](const Word& each) {
      const std::string name = each.text.substr(each.text.rfind('/') + 1);
      return name == "sh" || name == "bash" || name == "ssh";
    });
  }

  // Here-documents, which begin on this line. They are text, but for those that a shell reads.
  Status pass_documents() {
    for (const HereDocument& each : std::exchange(documents_, {})) {
      const std::size_t begin = at_;
      const int first = line_;
      std::size_t end = std::string_view::npos;
      while (unended_ < kMaxUnended && at_ < text_.size() && end == std::string_view::npos) {
        std::string_view line = text_.substr(at_, text_.find('\n', at_) - at_);
        const std::size_t here = at_;
        at_ = std::min(text_.size(), at_ + line.size() + 1);
        ++line_;
        if (line.ends_with('\r')) line.remove_suffix(1);
        while (each.tabs && line.starts_with('\t')) line.remove_prefix(1);
        if (line == each.end) end = here;
      }
      if (end == std::string_view::npos) {  // without its end it is none
        ++unended_;
        at_ = begin;
        line_ = first;
      } else if (each.script && depth_ < kMaxNested) {
        auto commands = Splitter(text_.substr(begin, end - begin), file_, first, known_, depth_ + 1).run();
        if (!commands) return std::move(commands).error();
        commands_.insert(commands_.end(), std::make_move_iterator(commands->begin()),
                         std::make_move_iterator(commands->end()));
      }
    }
    return {};
  }

  void add(char c) {
    if (!in_word_) word_.line = line_;
    in_word_ = true;
    word_.text += c;
  }

  void end_word() {
    if (!in_word_) return;
    in_word_ = false;
    if (array_) {
      array_words_.push_back(std::exchange(word_, {}));
      return;
    }
    const bool exports = !command_.words.empty() && command_.words[0].text == "export";
    if (is_assignment(word_.text) && (command_.words.empty() || exports))
      command_.assignments.push_back(std::move(word_));
    else
      command_.words.push_back(std::move(word_));
    word_ = {};
  }

  void end_command() {
    end_word();
    const bool exports = !command_.words.empty() && command_.words[0].text == "export";
    if (exports && command_.words.size() == 1) command_.words.clear();
    // Those before a program are the program's alone.
    if (command_.words.empty())
      for (const Word& each : command_.assignments) {
        const std::size_t equals = each.text.find('=');
        if (each.open)
          known_.erase(each.text.substr(0, equals));
        else
          known_[each.text.substr(0, equals)] = each.text.substr(equals + 1);
      }
    if (!command_.words.empty() || !command_.assignments.empty()) commands_.push_back(std::move(command_));
    command_ = {};
  }

  struct HereDocument {
    std::string end;  // the line after it
    bool tabs;        // which may stand before that
    bool script;
  };

  std::string_view text_;
  std::string file_;
  int line_;
  std::size_t at_ = 0;
  Variables known_;
  int depth_;
  std::map<std::string, std::vector<Word>> arrays_;
  std::optional<Word> array_;  // the one that is being read, NAME=
  std::vector<Word> array_words_;
  std::vector<HereDocument> documents_;
  int unended_ = 0;
  std::size_t put_in_ = 0;  // bytes of values
  Word word_;
  bool in_word_ = false;
  Command command_;
  std::vector<Command> commands_;
};

}  // namespace

bool is_assignment(std::string_view word) {
  const std::size_t equals = word.find('=');
  return equals != std::string_view::npos && is_name(word.substr(0, equals));
}

Result<std::vector<Command>> split_script(std::string_view text, const std::string& file, int first_line,
                                          Variables known) {
  return Splitter(text, file, first_line, std::move(known)).run();
}

bool uses_variable(std::string_view text, std::string_view name) {
  for (std::size_t at = 0; (at = text.find('$', at)) != std::string_view::npos; ++at) {
    std::string_view rest = text.substr(at + 1);
    if (rest.starts_with('{') || rest.starts_with('(')) rest.remove_prefix(1);
    if (rest.starts_with(name) && (rest.size() == name.size() || !is_name_char(rest[name.size()]))) return true;
  }
  return false;
}

Word expand(std::string_view text, const Variables& known, bool kubernetes) {
  Word out;
  for (std::size_t i = 0; i < text.size();) {
    if (text[i] != '$') {
      out.text += text[i++];
      continue;
    }
    if (text.substr(i, 2) == "$$") {  // Compose's and Kubernetes' way to write one
      out.text += '$';
      i += 2;
      continue;
    }
    Piece piece = at_dollar(text.substr(i), known, kubernetes);
    if (out.text.size() > kMaxPutIn) piece.value.reset();
    out.text += piece.value ? *piece.value : std::string(text.substr(i, piece.size));
    out.open = out.open || !piece.value;
    i += piece.size;
  }
  return out;
}

}  // namespace xgen::importer
