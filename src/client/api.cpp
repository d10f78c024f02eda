#include "client/api.h"

#include <algorithm>
#include <vector>

#include "base/json.h"
#include "base/utf8.h"
#include "remote/secret_file.h"

namespace xgen::client {
namespace {

namespace json = boost::json;

constexpr std::size_t kMaxAnswer = 16 << 20;  // bytes of an answer that is no stream
constexpr std::size_t kMaxQuoted = 300;       // bytes of a body that is quoted

std::string one_line(std::string_view text) { return plain(text.substr(0, kMaxQuoted)); }

// {"error": {"message": …}} of OpenAI, {"error": …} of TGI and Triton, {"message": …} and {"detail": …} of others.
std::string message_of(const json::value& value) {
  if (const json::string* text = value.if_string()) return one_line({text->data(), text->size()});
  const json::object* object = value.if_object();
  if (object == nullptr) return {};
  for (const char* name : {"error", "message", "detail"})
    if (const json::value* inside = object->if_contains(name))
      if (std::string found = message_of(*inside); !found.empty()) return found;
  return {};
}

}  // namespace

std::string plain(std::string_view text) {
  std::string out;
  for (const char c : replace_invalid_utf8(text)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x80 && byte < 0xa0 && out.ends_with('\xc2'))  // U+0080 to U+009F
      out.back() = ' ';
    else
      out += byte < 0x20 || byte == 0x7f ? ' ' : c;
  }
  return out;
}

http::ClientRequest Api::request(std::string_view path, std::string body) const {
  http::ClientRequest request;
  request.method = body.empty() ? "GET" : "POST";
  request.url = url;
  request.url.target += path;
  request.ca_file = ca_file;
  request.body = std::move(body);
  request.first_byte_timeout = request.idle_timeout = timeout;
  request.deadline = std::chrono::steady_clock::now() + timeout;
  if (!request.body.empty()) request.headers.emplace_back("Content-Type", "application/json");
  if (!key.empty()) request.headers.emplace_back("Authorization", "Bearer " + key);
  return request;
}

Result<Api> make_api(const std::string& url, const std::string& key_file, const std::string& key) {
  auto parsed = http::parse_url(url.find("://") == std::string::npos ? "http://" + url : url);
  if (!parsed) return std::move(parsed).error();
  Api api;
  api.url = *std::move(parsed);
  std::string& target = api.url.target;
  if (target.find('?') != std::string::npos)
    return make_error(ErrorCode::invalid_argument, api.url.origin() + ": a query has no place in the server's URL");
  while (target.ends_with('/')) target.pop_back();
  if (!target.ends_with("/v1")) target += "/v1";
  api.key = key;
  if (!key_file.empty()) {
    auto read = remote::SecretFile(key_file, "--api-key-file").read();
    if (!read) return make_error(ErrorCode::invalid_argument, read.error().message);
    api.key = *std::move(read);
  }
  if (std::any_of(api.key.begin(), api.key.end(), [](char c) { return c <= ' ' || c > '~'; }))
    return make_error(ErrorCode::invalid_argument, "the API key: expected printable characters without blanks");
  return api;
}

std::string error_message(std::string_view text) {
  const auto value = parse_json(text);
  const json::object* object = value ? value->if_object() : nullptr;
  const json::value* error = object == nullptr ? nullptr : object->if_contains("error");
  if (error == nullptr || error->is_null()) return {};
  std::string message = message_of(*error);
  return message.empty() ? "an error without a message" : message;
}

std::string refusal_text(int status, std::string_view body) {
  const auto value = parse_json(body);
  std::string message = value ? message_of(*value) : std::string();
  if (message.empty()) message = one_line(body);
  return "the server answered " + std::to_string(status) + (message.empty() ? "" : ": " + message);
}

Result<std::string> ask(http::Client& client, const Api& api, http::ClientRequest request,
                        const http::CancelToken* cancel) {
  request.max_body = kMaxAnswer;
  int status = 0;
  std::string body;
  const Status called = http::fetch(
      client, std::move(request),
      [&](const http::ResponseHead& head) {
        status = head.status;
        return Status();
      },
      [&](std::string_view piece) {
        body += piece;
        return Status();
      },
      cancel);
  if (!called) return called.error();
  if (status == 200) return body;
  const ErrorCode code = status == 401   ? ErrorCode::unauthenticated
                         : status == 403 ? ErrorCode::permission_denied
                         : status == 404 ? ErrorCode::not_found
                         : status == 429 ? ErrorCode::overloaded
                         : status < 500  ? ErrorCode::invalid_argument
                                         : ErrorCode::unavailable;
  return make_error(code, api.url.origin() + ": " + refusal_text(status, body));
}

Result<ModelInfo> choose_model(http::Client& client, const Api& api, const std::string& wanted,
                               const http::CancelToken* cancel) {
  const auto listed = ask(client, api, api.request("/models"), cancel);
  if (!listed) {
    if (listed.error().code == ErrorCode::not_found && !wanted.empty()) return ModelInfo{wanted};
    return listed.error();
  }
  const auto value = parse_json(*listed);
  const json::object* object = value ? value->if_object() : nullptr;
  const json::value* data = object == nullptr ? nullptr : object->if_contains("data");
  if (data == nullptr || !data->is_array())
    return make_error(ErrorCode::unavailable,
                      api.text() + "/models is not a list of models: is this an OpenAI server?");
  std::vector<ModelInfo> models;
  std::string root;      // what the first one is
  bool one_root = true;  // the others are further names of it
  for (const json::value& each : data->get_array()) {
    const json::object* entry = each.if_object();
    const json::value* id = entry == nullptr ? nullptr : entry->if_contains("id");
    if (id == nullptr || !id->is_string()) continue;
    ModelInfo model{std::string(id->get_string())};
    const json::value* length = entry->if_contains("max_model_len");
    if (length != nullptr && length->is_int64() && length->get_int64() > 0)
      model.max_len = static_cast<int>(std::min<std::int64_t>(length->get_int64(), 1 << 30));
    if (model.name == wanted) return model;
    const json::value* of = entry->if_contains("root");
    const std::string name = of != nullptr && of->is_string() ? std::string(of->get_string()) : model.name;
    if (models.empty()) root = name;
    one_root = one_root && name == root;
    models.push_back(std::move(model));
  }
  if (wanted.empty() && !models.empty() && one_root) return models.front();
  // Aliases and names of adapters need not be listed.
  if (!wanted.empty()) return ModelInfo{wanted};
  if (models.empty()) return make_error(ErrorCode::invalid_argument, api.text() + ": the server has no model");
  std::string names;
  for (const ModelInfo& each : models) names += (names.empty() ? "" : ", ") + one_line(each.name);
  return make_error(ErrorCode::invalid_argument, api.text() + " has several models; choose one with --model: " + names);
}

bool ExtraFields::has(std::string_view name) const {
  return std::find(names.begin(), names.end(), name) != names.end();
}

Result<ExtraFields> parse_extra(std::string_view text) {
  ExtraFields extra;
  if (text.empty()) return extra;
  const auto value = parse_json(text);
  if (!value) return make_error(ErrorCode::invalid_argument, "expected a JSON object: " + value.error().message);
  const json::object* object = value->if_object();
  if (object == nullptr) return make_error(ErrorCode::invalid_argument, "expected a JSON object");
  for (const auto& member : *object) {
    extra.names.emplace_back(member.key());
    extra.text += "," + json::serialize(json::string(member.key())) + ":" + json::serialize(member.value());
  }
  return extra;
}

}  // namespace xgen::client
