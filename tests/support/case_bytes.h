// The bytes of the requests in tests/cases/http.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <string>

namespace xgen::scripted {

// UTF-8 of characters up to U+00FF, as that many bytes.
inline std::string bytes_of_characters(const std::string& utf8) {
  std::string bytes;
  for (std::size_t i = 0; i < utf8.size(); ++i) {
    const auto lead = static_cast<unsigned char>(utf8[i]);
    if (lead < 0x80)
      bytes += utf8[i];
    else
      bytes += static_cast<char>((lead & 3) << 6 | (static_cast<unsigned char>(utf8[++i]) & 0x3f));
  }
  return bytes;
}

// Puts what "repeat" says in the place of @@.
inline std::string expanded(std::string bytes, const boost::json::object& request) {
  if (const boost::json::value* value = request.if_contains("repeat")) {
    std::string repeated;
    for (std::int64_t i = 0; i < value->at("times").as_int64(); ++i) repeated += value->at("text").as_string();
    bytes.replace(bytes.find("@@"), 2, repeated);
  }
  return bytes;
}

}  // namespace xgen::scripted
