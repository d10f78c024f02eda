// One question to a server, with its whole answer.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "inference/types.h"
#include "remote/endpoint.h"
#include "remote/reply.h"

namespace xgen::remote {

inline constexpr std::uint64_t kMaxJsonReply = 64 << 20;  // bytes of an answer to /tokenize and the like

struct Ask {
  std::string target;
  std::string_view route;  // as clients know it
  Result<std::string> body;
  std::optional<std::chrono::steady_clock::time_point> deadline;
  int hops = 0;  // of the request that it is asked for
};

// POSTs `what`, whose body may be an error; `read` understands the answer or not. Errors: those of the call and of
// refusals; unsupported, naming the route, where the server has no such thing.
template <class T>
void ask(const std::shared_ptr<Endpoint>& endpoint, Ask what, std::function<void(Result<T>)> done,
         std::function<std::optional<T>(std::string_view reply)> read) {
  if (!what.body) return done(std::move(what.body).error());
  std::string key;
  auto call = endpoint->call("POST", std::move(what.target), &key);
  if (!call) return done(std::move(call).error());
  call->body = *std::move(what.body);
  call->deadline = what.deadline;
  call->headers.emplace_back(inference::kHopsHeader, std::to_string(what.hops + 1));
  call->max_body = kMaxJsonReply;
  auto id = endpoint->enter();
  if (!id) return done(std::move(id).error());
  auto reply = std::make_shared<Reply>(
      [endpoint, id = *id, done = std::move(done), read = std::move(read), route = std::string(what.route),
       deadline = what.deadline,
       upstream = endpoint->upstream(std::move(key))](const auto& head, std::string_view text, const auto& end) {
        endpoint->leave(id);
        if (!end.status) return done(endpoint->error_of_end(end, deadline, upstream));
        if (head.status == 404)
          return done(make_error(ErrorCode::unsupported, upstream.says("does not offer " + route)));
        if (head.status != 200) return done(error_of_answer(head, text, upstream));
        auto value = read(text);
        if (!value) return done(make_error(ErrorCode::internal, upstream.says("gave an answer that cannot be read")));
        done(*std::move(value));
      });
  endpoint->began(*id, endpoint->client.start(*std::move(call), std::move(reply)));
}

}  // namespace xgen::remote
