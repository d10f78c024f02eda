#include "api/json_writer.h"

#include <charconv>
#include <cmath>

#include "base/json_text.h"

namespace xgen::api {

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  append_json_escaped(out, text);
  out += '"';
}

void append_json_int(std::string& out, std::int64_t value) {
  char text[24];
  out.append(text, static_cast<std::size_t>(std::to_chars(text, text + sizeof(text), value).ptr - text));
}

void append_json_float(std::string& out, float value) {
  if (!std::isfinite(value)) value = -9999;
  char text[48];
  out.append(text, static_cast<std::size_t>(std::to_chars(text, text + sizeof(text), value).ptr - text));
}

}  // namespace xgen::api
