// Api: an OpenAI server as its clients see it: where it is, the key, its models, and what its refusals say.
#pragma once

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "http/client.h"

namespace xgen::client {

struct Api {
  http::Url url;    // of /v1, without a slash at its end
  std::string key;  // empty: none
  std::string ca_file;
  std::chrono::milliseconds timeout{600'000};  // of one whole call

  // "http://host:8000/v1"
  std::string text() const { return url.text(); }
  // A call of `path` ("/models") below /v1, with the key: a POST if it has a body.
  http::ClientRequest request(std::string_view path, std::string body = {}) const;
};

// `url`: with or without /v1 at its end. The key is the line in `key_file`, or else `key`. Errors: invalid_argument.
Result<Api> make_api(const std::string& url, const std::string& key_file, const std::string& key);

struct ModelInfo {
  std::string name;
  int max_len = 0;  // tokens of a prompt and its answer; 0: not told
};

// The model of that name, or the only one, which may have several names, where `wanted` is empty. A server that has no
// list is believed to have the model. Errors: those of the call; invalid_argument, naming the models there are.
Result<ModelInfo> choose_model(http::Client& client, const Api& api, const std::string& wanted,
                               const http::CancelToken* cancel = nullptr);

// Without what a terminal would obey: control characters, those of Unicode's C1 among them, are blanks.
std::string plain(std::string_view text);
// What a refusal says: the message of the JSON body, or the beginning of the body, after the status.
std::string refusal_text(int status, std::string_view body);
// What an "error" of a stream's event, or a whole body, says; empty if it is none.
std::string error_message(std::string_view json);

// The whole answer to one call. Errors: those of the call, and refusals.
Result<std::string> ask(http::Client& client, const Api& api, http::ClientRequest request,
                        const http::CancelToken* cancel = nullptr);

// Fields that are added to a request's body; a field of ours with the same name is left out.
struct ExtraFields {
  std::string text;  // ,"a":1,"b":2
  std::vector<std::string> names;
  bool has(std::string_view name) const;
};
// Out of a JSON object; of nothing, none. Errors: invalid_argument.
Result<ExtraFields> parse_extra(std::string_view json);

}  // namespace xgen::client
