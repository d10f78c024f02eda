// Plays the conversations of tests/cases/http/*.json. A file is a list of cases:
//   name     what it shows
//   request  {method = POST, path, headers, json | body | raw}; raw is the bytes to send (each character up to U+00FF
//            is one), all else makes them; "repeat": {"text", "times"} stands in the place of @@ in body or raw
//   closes   true: the connection ends with this answer, and nothing that was sent behind the request has another
//   status   expected
//   headers  expected, by lower-case name; null = absent
//   json     expected subset: every given key must be there, lists must have the given length; "*" is anything
//   body_has texts that the body must hold;  events: expected subsets of the data of each SSE event, in order
#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "server/fixture.h"
#include "support/case_bytes.h"

namespace xgen::server {
namespace {

namespace json = boost::json;
using scripted::Answer;
using scripted::bytes_of_characters;
using scripted::expanded;
using scripted::RawClient;

std::string text(const json::value& value) { return std::string(value.as_string().data(), value.as_string().size()); }

// Empty if `actual` holds everything of `expected`, else where it differs.
std::string difference(const json::value& expected, const json::value& actual, const std::string& where = "$") {
  if (expected.is_string() && expected.get_string() == "*") return {};
  if (expected.is_object()) {
    if (!actual.is_object()) return where + " is no object: " + json::serialize(actual);
    for (const auto& [key, value] : expected.get_object()) {
      const json::value* found = actual.get_object().if_contains(key);
      const std::string name = where + "." + std::string(key.data(), key.size());
      if (found == nullptr) return name + " is missing";
      if (auto differs = difference(value, *found, name); !differs.empty()) return differs;
    }
    return {};
  }
  if (expected.is_array()) {
    if (!actual.is_array() || actual.get_array().size() != expected.get_array().size())
      return where + " is no list of " + std::to_string(expected.get_array().size()) + ": " + json::serialize(actual);
    for (std::size_t i = 0; i < expected.get_array().size(); ++i)
      if (auto differs =
              difference(expected.get_array()[i], actual.get_array()[i], where + "[" + std::to_string(i) + "]");
          !differs.empty())
        return differs;
    return {};
  }
  if (expected.is_number() && actual.is_number())
    return std::abs(expected.to_number<double>() - actual.to_number<double>()) < 1e-6
               ? ""
               : where + " is " + json::serialize(actual) + ", not " + json::serialize(expected);
  return expected == actual ? "" : where + " is " + json::serialize(actual) + ", not " + json::serialize(expected);
}

std::string bytes_of(const json::object& request) {
  if (const json::value* raw = request.if_contains("raw")) return expanded(bytes_of_characters(text(*raw)), request);
  std::string body;
  if (const json::value* value = request.if_contains("json")) body = json::serialize(*value);
  if (const json::value* value = request.if_contains("body")) body = text(*value);
  if (const json::value* value = request.if_contains("body_hex")) {
    const std::string hex = text(*value);
    for (std::size_t i = 0; i + 1 < hex.size(); i += 2)
      body += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  body = expanded(std::move(body), request);
  const json::value* method = request.if_contains("method");
  std::string bytes = (method != nullptr ? text(*method) : std::string("POST")) + " " +
                      bytes_of_characters(text(request.at("path"))) + " HTTP/1.1\r\nHost: test\r\n";
  if (const json::value* headers = request.if_contains("headers"))
    for (const auto& [name, value] : headers->as_object())
      bytes += std::string(name.data(), name.size()) + ": " + text(value) + "\r\n";
  if (!body.empty()) bytes += "Content-Length: " + std::to_string(body.size()) + "\r\n";
  return bytes + "\r\n" + body;
}

std::vector<std::string> sse_data(const std::string& body) {
  std::vector<std::string> events;
  for (std::size_t at = 0; at < body.size();) {
    const std::size_t end = body.find("\n\n", at);
    if (end == std::string::npos) {
      ADD_FAILURE() << "unfinished event: " << body.substr(at);
      break;
    }
    const std::string event = body.substr(at, end - at);
    EXPECT_TRUE(event.starts_with("data: ")) << event;
    events.push_back(event.substr(6));
    at = end + 2;
  }
  return events;
}

class ConversationTest : public ControllerTest, public ::testing::WithParamInterface<std::string> {};

TEST_P(ConversationTest, GoesAsWritten) {
  start();
  std::ifstream file(GetParam());
  std::stringstream content;
  content << file.rdbuf();
  const json::value cases = parse(content.str());
  ASSERT_FALSE(cases.as_array().empty());
  for (const json::value& item : cases.as_array()) {
    const json::object& one = item.as_object();
    SCOPED_TRACE(text(one.at("name")));
    const json::object& request = one.at("request").as_object();
    RawClient client(http->port());
    client.send(bytes_of(request));
    const bool head = request.contains("method") && request.at("method") == "HEAD";
    const Answer answer = client.read_answer(head);
    EXPECT_EQ(answer.status, one.at("status").as_int64()) << answer.body.substr(0, 500);
    EXPECT_TRUE(answer.headers.contains("x-request-id"));
    if (one.contains("closes")) {
      EXPECT_TRUE(client.closed_within(std::chrono::seconds(5)));
      EXPECT_EQ(client.input, "");
    }
    if (const json::value* headers = one.if_contains("headers")) {
      for (const auto& [name, value] : headers->as_object()) {
        const auto found = answer.headers.find(std::string(name.data(), name.size()));
        if (value.is_null()) {
          EXPECT_EQ(found, answer.headers.end()) << name;
        } else if (found == answer.headers.end()) {
          ADD_FAILURE() << "no header " << name;
        } else if (value != "*") {
          EXPECT_EQ(found->second, text(value));
        }
      }
    }
    if (const json::value* expected = one.if_contains("json")) {
      EXPECT_EQ(difference(*expected, parse(answer.body)), "") << answer.body.substr(0, 2000);
    }
    if (const json::value* texts = one.if_contains("body_has")) {
      for (const json::value& each : texts->as_array()) EXPECT_THAT(answer.body, ::testing::HasSubstr(text(each)));
    }
    if (const json::value* expected = one.if_contains("events")) {
      const auto events = sse_data(answer.body);
      ASSERT_EQ(events.size(), expected->as_array().size()) << answer.body;
      for (std::size_t i = 0; i < events.size(); ++i) {
        const json::value& want = expected->as_array()[i];
        if (want == "[DONE]") {
          EXPECT_EQ(events[i], "[DONE]");
        } else {
          EXPECT_EQ(difference(want, parse(events[i])), "") << events[i];
        }
      }
    }
    // Whatever the request was, the next one is served.
    EXPECT_EQ(get("/health").status, 200);
  }
}

std::vector<std::string> files() {
  std::vector<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(XGEN_SOURCE_DIR "/tests/cases/http"))
    if (entry.path().extension() == ".json") found.push_back(entry.path());
  std::sort(found.begin(), found.end());
  return found;
}

INSTANTIATE_TEST_SUITE_P(Files, ConversationTest, ::testing::ValuesIn(files()),
                         [](const auto& each) { return std::filesystem::path(each.param).stem().string(); });

}  // namespace
}  // namespace xgen::server
