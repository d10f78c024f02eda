// The words of shell scripts: quotes, continued lines, variables and commands, without running anything.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace xgen::importer {

struct Word {
  std::string text;
  int line = 0;           // from 1; 0: none
  bool open = false;      // a variable or command is left in it, since its value is not known
  bool redirect = false;  // of input or output
};

struct Command {
  std::vector<Word> assignments;  // NAME=VALUE before the words, or of export
  std::vector<Word> words;
};

using Variables = std::map<std::string, std::string>;

// The commands of a script. Variables that it sets, or that are `known`, are put in where they are used, as are
// defaults (${NAME:-8000}), what ${NAME##*/} and the like leave, and arrays ("${NAME[@]}"). Here-documents are passed
// over, but for those that a shell reads. Errors: invalid_argument with the line: what is not closed.
Result<std::vector<Command>> split_script(std::string_view text, const std::string& file, int first_line,
                                          Variables known = {});
// Puts in what is known of $NAME, ${NAME} and ${NAME:-DEFAULT}, and with `kubernetes` of $(NAME) instead. What is not
// known stays.
Word expand(std::string_view text, const Variables& known, bool kubernetes);
// Whether the text uses the variable.
bool uses_variable(std::string_view text, std::string_view name);
// NAME=VALUE
bool is_assignment(std::string_view word);

}  // namespace xgen::importer
