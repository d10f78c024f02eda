// Splits a template into tokens as jinja2's lexer does with trim_blocks and lstrip_blocks on.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/value.h"

namespace xgen::text::jinja {

enum class TokenType : std::uint8_t {
  data,
  variable_begin,
  variable_end,
  block_begin,
  block_end,
  name,
  string,
  integer,
  real,
  op,
  end,
};

struct Token {
  TokenType type = TokenType::end;
  int line = 1;
  std::string text;  // data, name, operator, or a string's value
  Value value;       // of an integer or real
};

// Throws TemplateError (syntax). The last token is `end`.
std::vector<Token> tokenize(std::string_view source);

// How error messages name a token.
std::string describe(const Token& token);

}  // namespace xgen::text::jinja
