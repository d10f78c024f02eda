#include "remote/upstream_error.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include "base/json.h"
#include "base/utf8.h"

namespace xgen::remote {
namespace {

namespace json = boost::json;

constexpr std::size_t kMaxMessage = 2000;  // bytes of a server's message that are passed on
constexpr int kMaxRetryAfter = 3600;       // seconds

struct Details {
  std::string message;
  std::string param;
  std::string type;
  std::string code;
  int status = 0;  // where the code is one of HTTP
};

std::string text_of(const json::value* value) {
  const json::string* text = value == nullptr ? nullptr : value->if_string();
  return text == nullptr ? std::string() : std::string(text->data(), text->size());
}

constexpr std::pair<std::string_view, int> kTgiMessages[] = {{"Input validation error", 422},
                                                             {"Template error", 422},
                                                             {"Missing template", 422},
                                                             {"Tool error", 422},
                                                             {"Model is overloaded", 429}};

Details details_of(const json::object& error) {
  Details details{text_of(error.if_contains("message")), text_of(error.if_contains("param")),
                  text_of(error.if_contains("type")), text_of(error.if_contains("code")), 0};
  if (const json::value* code = error.if_contains("code"); code != nullptr && code->is_int64())
    details.status = static_cast<int>(code->get_int64());
  // TGI's chats say 422 of every fault; its words tell them apart.
  if (error.contains("http_status_code"))
    for (const auto& [start, status] : kTgiMessages)
      if (details.message.starts_with(start)) details.status = status;
  return details;
}

// {"error": "…"}, with an "error_type" if it is TGI's. Triton's faults of requests have the status of its own ones.
Details details_of_text(const json::object& body) {
  Details details{text_of(body.if_contains("error")), {}, text_of(body.if_contains("error_type")), {}, 0};
  if (details.message.find("exceeds maximum input length") != std::string::npos) details.status = 400;
  return details;
}

// FastAPI's own faults: {"detail": "…"} or {"detail": [{"loc": ["body", "n"], "msg": "…"}]}.
Details details_of_fastapi(const json::value& detail) {
  Details details;
  details.message = text_of(&detail);
  const json::array* list = detail.if_array();
  const json::object* first = list == nullptr || list->empty() ? nullptr : list->front().if_object();
  if (first == nullptr) return details;
  details.message = text_of(first->if_contains("msg"));
  const json::value* where = first->if_contains("loc");
  if (where != nullptr && where->is_array())
    for (const json::value& each : where->get_array())
      if (const std::string part = text_of(&each); !part.empty() && part != "body")
        details.param += (details.param.empty() ? "" : ".") + part;
  return details;
}

Details details_of_body(std::string_view body) {
  if (body.starts_with("data:")) body.remove_prefix(5);  // a stream's first and only event
  const auto parsed = parse_json(body);
  const json::object* object = parsed ? parsed->if_object() : nullptr;
  if (object != nullptr) {
    if (const json::value* error = object->if_contains("error")) {
      if (const json::object* inner = error->if_object()) return details_of(*inner);
      if (error->is_string()) return details_of_text(*object);
    }
    if (const json::value* detail = object->if_contains("detail")) return details_of_fastapi(*detail);
    if (object->contains("message")) return details_of(*object);
  }
  Details details;
  if (body.find('<') == std::string_view::npos) details.message = replace_invalid_utf8(std::string(body));
  return details;
}

int retry_after(const http::ResponseHead* head) {
  if (head == nullptr) return 1;
  const std::string_view text = head->header("Retry-After");
  int seconds = 0;
  std::from_chars(text.data(), text.data() + text.size(), seconds);
  return std::clamp(seconds, 1, kMaxRetryAfter);
}

Error make(int status, Details details, const http::ResponseHead* head, const Upstream& upstream) {
  details.message = upstream.without_secret(std::move(details.message));
  if (details.message.size() > kMaxMessage)
    details.message = replace_invalid_utf8(details.message.substr(0, kMaxMessage)) + "…";
  const std::string said = details.message.empty() ? std::string() : ": " + details.message;
  const auto own = [&](ErrorCode code, std::string_view what) {
    Error error = make_error(code, upstream.says(std::string(what) + said));
    if (code == ErrorCode::overloaded || code == ErrorCode::unavailable) error.retry_after_s = retry_after(head);
    return error;
  };
  switch (status) {
    case 404:  // mostly the configuration's fault; or the client's, of a model that does not do what it asks for
      return own(ErrorCode::invalid_argument,
                 "knows no such model or path; are 'model' and the /v1 of 'urls' right? It said 404");
    case 400:
    case 413:
    case 422: {
      ErrorCode code = status == 413 ? ErrorCode::too_large : ErrorCode::invalid_argument;
      if (details.code == "unsupported_parameter") code = ErrorCode::unsupported;
      if (details.message.empty())
        return make_error(code, upstream.says("refused the request with status " + std::to_string(status)));
      return make_error(code, std::move(details.message), std::move(details.param));
    }
    case 401:
    case 403: {
      Error error = make_error(ErrorCode::unavailable, upstream.says("refused our credentials"));
      error.retry_after_s = 60;
      return error;
    }
    case 408:
      return own(ErrorCode::timeout, "gave the request up");
    case 429:
      return own(ErrorCode::overloaded, "is overloaded");
    case 502:
    case 503:
    case 504:
      return own(ErrorCode::unavailable, "is not available");
    default:
      // 424 is TGI's word for a fault while it computes.
      return own(ErrorCode::internal,
                 status >= 500 || status == 424 ? "failed" : "answered with status " + std::to_string(status));
  }
}

// What an error inside a stream would have been as an answer.
int status_of(const Details& details) {
  if (details.status >= 400 && details.status < 600) return details.status;
  struct Row {
    std::string_view word;
    int status;
  };
  constexpr Row kRows[] = {{"service_unavailable", 503},
                           {"rate_limit_exceeded", 429},
                           {"rate_limit_error", 429},
                           {"request_timeout", 408},
                           {"timeout_error", 408},
                           {"request_too_large", 413},
                           {"authentication_error", 401},
                           {"permission_error", 403},
                           {"invalid_request_error", 400},
                           {"BadRequestError", 400},
                           {"BadRequest", 400},
                           {"NotFoundError", 404},
                           {"ServiceUnavailableError", 503},
                           // TGI's:
                           {"validation", 422},
                           {"template_error", 422},
                           {"tool_error", 422},
                           {"overloaded", 429},
                           {"generation", 424},
                           {"healthcheck", 503}};
  for (const std::string* word : {&details.code, &details.type})
    for (const Row& row : kRows)
      if (*word == row.word) return row.status;
  return 500;
}

}  // namespace

std::string Upstream::says(std::string_view what) const {
  return "Model '" + model + "': its engine at " + origin + " " + std::string(what);
}

Error Upstream::unreadable(std::string_view why) const {
  return make_error(ErrorCode::internal, says("sent a stream that cannot be read: " + std::string(why)));
}

std::string Upstream::without_secret(std::string text) const {
  if (secret.empty()) return text;
  for (std::size_t at = 0; (at = text.find(secret, at)) != std::string::npos; at += 3)
    text.replace(at, secret.size(), "***");
  return text;
}

Error error_of_answer(const http::ResponseHead& head, std::string_view body, const Upstream& upstream) {
  Details details = details_of_body(body);
  const int status = head.status >= 500 && details.status == 400 ? 400 : head.status;
  return make(status, std::move(details), &head, upstream);
}

bool is_stream_error(const json::object& chunk) {
  if (const json::value* error = chunk.if_contains("error")) return !error->is_null();
  const json::value* object = chunk.if_contains("object");
  return object != nullptr && object->is_string() && object->get_string() == "error";
}

Error error_of_chunk(const json::object& chunk, const Upstream& upstream) {
  const json::value* error = chunk.if_contains("error");
  Details details;
  if (error == nullptr)
    details = details_of(chunk);
  else if (const json::object* inner = error->if_object())
    details = details_of(*inner);
  else
    details = details_of_text(chunk);
  const int status = status_of(details);
  return make(status, std::move(details), nullptr, upstream);
}

Error error_of_call(const http::CallEnd& end, const Upstream& upstream) {
  const Error& error = end.status.error();
  std::string_view why = error.message;  // begins with the origin, which is named already
  if (why.starts_with(upstream.origin + ": ")) why.remove_prefix(upstream.origin.size() + 2);
  const auto is = [&](ErrorCode code, std::string_view what) {
    Error out = make_error(code, upstream.says(std::string(what) + ": " + std::string(why)));
    if (code != ErrorCode::internal) out.retry_after_s = 1;
    return out;
  };
  switch (error.code) {
    case ErrorCode::overloaded:
      return is(ErrorCode::overloaded, "was not called");
    case ErrorCode::unavailable:
    case ErrorCode::timeout:
    case ErrorCode::cancelled:
      if (end.phase == http::CallEnd::Phase::connecting) return is(ErrorCode::unavailable, "cannot be reached");
      if (end.phase < http::CallEnd::Phase::body) return is(ErrorCode::unavailable, "did not answer");
      return is(ErrorCode::unavailable, "broke off its answer");
    default:
      return is(ErrorCode::internal, "cannot be called");
  }
}

}  // namespace xgen::remote
