// Reads the goldens of tools/golden/chat_templates.py and compares a rendering with one of them.
#pragma once

#include <boost/json.hpp>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include "text/chat_template.h"

namespace xgen::text {

inline std::filesystem::path golden_dir() {
  return std::filesystem::path(XGEN_SOURCE_DIR) / "tests" / "golden" / "chat_templates";
}

inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream out;
  out << file.rdbuf();
  return out.str();
}

inline boost::json::value read_json(const std::filesystem::path& path) { return boost::json::parse(read_text(path)); }

// The moment the goldens' strftime_now tells: Friday, 2024-07-26 13:05:09.
inline RenderSettings golden_settings() {
  RenderSettings settings;
  settings.local_time = [] {
    std::tm out{};
    out.tm_year = 124;
    out.tm_mon = 6;
    out.tm_mday = 26;
    out.tm_hour = 13;
    out.tm_min = 5;
    out.tm_sec = 9;
    out.tm_wday = 5;
    out.tm_yday = 207;
    return out;
  };
  return settings;
}

inline Result<std::string> render_source(const std::string& source, const jinja::Value& context) {
  auto parsed = ChatTemplate::parse(source);
  if (!parsed.ok()) return parsed.error();
  return parsed->render(context, golden_settings());
}

// Empty if `actual` is what the golden says, else what differs. A text must be equal; what raise_exception said must
// be equal; where Python raised anything else, there must be an error.
inline std::string difference(const Result<std::string>& actual, const std::string* text,
                              const boost::json::object* failure) {
  if (text != nullptr) {
    if (!actual.ok()) return "failed: " + actual.error().message + "\n  expected: " + *text;
    return *actual == *text ? "" : "rendered: " + *actual + "\n  expected: " + *text;
  }
  if (const auto* message = failure->if_contains("raise")) {
    if (actual.ok()) return "rendered: " + *actual + "\n  but should raise: " + std::string(message->as_string());
    return std::string_view(message->as_string()) == actual.error().message
               ? ""
               : "raised: " + actual.error().message + "\n  expected: " + std::string(message->as_string());
  }
  if (!actual.ok()) return "";
  return "rendered: " + *actual + "\n  but should fail: " + std::string(failure->at("error").as_string());
}

}  // namespace xgen::text
