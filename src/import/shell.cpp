#include "import/shell.h"

#include <algorithm>
#include <cctype>
#include <optional>

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
constexpr int kMaxNested = 8;                   // defaults within defaults

std::size_t closing(std::string_view text, std::size_t open, char left, char right) {
  int depth = 0;
  for (std::size_t i = open; i < std::min(text.size(), kMaxSubstitution); ++i) {
    if (text[i] == left) ++depth;
    if (text[i] == right && --depth == 0) return i;
  }
  return std::string_view::npos;
}

// text[0] is '$'.
Piece at_dollar(std::string_view text, const Variables& known, bool kubernetes) {
  const auto value_of = [&](std::string_view name) -> std::optional<std::string> {
    const auto found = known.find(std::string(name));
    return found == known.end() ? std::optional<std::string>() : found->second;
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
    std::optional<std::string> value = value_of(inside.substr(0, i));
    std::string_view rest = inside.substr(i);
    if (!value || (value->empty() && rest.starts_with(':'))) {
      if (rest.starts_with(':')) rest.remove_prefix(1);
      if (rest.starts_with('-')) value = expand(rest.substr(1), known, false).text;
    }
    return {end + 1, value};
  }
  std::size_t i = 1;
  while (i < text.size() && is_name_char(text[i])) ++i;
  if (i == 1) return {text[1] == '@' || text[1] == '*' ? 2u : 1u, {}};
  return {i, value_of(text.substr(1, i - 1))};
}

class Splitter {
 public:
  Splitter(std::string_view text, std::string file, int line, Variables known)
      : text_(text), file_(std::move(file)), line_(line), known_(std::move(known)) {}

  Result<std::vector<Command>> run() {
    while (at_ < text_.size()) {
      if (Status status = step(); !status) return std::move(status).error();
    }
    end_command();
    return std::move(commands_);
  }

 private:
  char look(std::size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }

  Status step() {
    const char c = look();
    if (c == '\n') {
      end_command();
      ++line_;
    } else if (c == '\\' && (look(1) == '\n' || (look(1) == '\r' && look(2) == '\n'))) {
      at_ += look(1) == '\n' ? 1 : 2;
      ++line_;
    } else if (std::isspace(static_cast<unsigned char>(c)) != 0) {
      end_word();
    } else if (c == '#' && !in_word_) {
      while (at_ < text_.size() && look() != '\n') ++at_;
      return {};
    } else if (c == ';' || c == '|' || (c == '&' && look(1) != '>')) {
      end_command();
    } else if (c == '>' || c == '<' || c == '&') {
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
      const std::size_t end = text_.find('`', at_ + 1);
      if (end == std::string_view::npos) return unclosed('`', line_);
      leave(text_.substr(at_, end + 1 - at_));
      at_ = end;
    } else {
      add(c);
    }
    ++at_;
    return {};
  }

  Status unclosed(char mark, int line) const {
    return make_error(ErrorCode::invalid_argument,
                      file_ + ":" + std::to_string(line) + ": the quote " + std::string(1, mark) + " is not closed");
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
      if (mark == '"' && c == '\\' && at_ + 1 < text_.size() &&
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
    return unclosed(mark, begin);
  }

  void variable(bool in_quotes) {
    const Piece piece = at_dollar(text_.substr(at_), known_, false);
    if (!piece.value) {
      leave(text_.substr(at_, piece.size));
    } else {
      for (const char c : *piece.value) {
        if (!in_quotes && std::isspace(static_cast<unsigned char>(c)) != 0)
          end_word();
        else
          add(c);
      }
    }
    at_ += piece.size;
  }

  void leave(std::string_view text) {
    for (const char c : text) {
      add(c);
      if (c == '\n') ++line_;
    }
    word_.open = true;
  }

  // "2>&1", "> file", "&> file": one word, with its number and target.
  void redirect() {
    if (word_.text.find_first_not_of("0123456789") != std::string::npos) end_word();
    while (look() == '>' || look() == '<' || look() == '&') add(text_[at_++]);
    const bool target = word_.text.back() != '&' || !std::isdigit(static_cast<unsigned char>(look()));
    if (target && look() == ' ') add(text_[at_++]);
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(look())) == 0 && look() != ';') {
      if (look() == '\'' || look() == '"')
        ++at_;
      else
        add(text_[at_++]);
    }
    word_.redirect = true;
    end_word();
  }

  void add(char c) {
    if (!in_word_) word_.line = line_;
    in_word_ = true;
    word_.text += c;
  }

  void end_word() {
    if (!in_word_) return;
    const bool exports = !command_.words.empty() && command_.words[0].text == "export";
    if (is_assignment(word_.text) && (command_.words.empty() || exports))
      command_.assignments.push_back(std::move(word_));
    else
      command_.words.push_back(std::move(word_));
    word_ = {};
    in_word_ = false;
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

  std::string_view text_;
  std::string file_;
  int line_;
  std::size_t at_ = 0;
  Variables known_;
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
    const Piece piece = at_dollar(text.substr(i), known, kubernetes);
    out.text += piece.value ? *piece.value : std::string(text.substr(i, piece.size));
    out.open = out.open || !piece.value;
    i += piece.size;
  }
  return out;
}

std::string quoted(std::string_view word) {
  const bool plain = !word.empty() && std::all_of(word.begin(), word.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c >= 0x80 ||
           std::string_view("-_./:=@%+,~${}").find(static_cast<char>(c)) != std::string_view::npos;
  });
  if (plain) return std::string(word);
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

}  // namespace xgen::importer
