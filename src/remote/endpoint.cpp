#include "remote/endpoint.h"

#include <utility>
#include <vector>

namespace xgen::remote {

Result<http::ClientRequest> Endpoint::call(std::string_view method, std::string target, std::string* key_out) {
  auto key = key_.read();
  if (!key) return std::move(key).error();
  http::ClientRequest request;
  request.method = method;
  request.url = options.url;
  request.url.target = std::move(target);
  request.headers = options.headers;
  if (!key->empty()) request.headers.emplace_back("Authorization", "Bearer " + *key);
  if (method == "POST") request.headers.emplace_back("Content-Type", "application/json");
  request.ca_file = options.ca_file;
  request.connect_timeout = options.connect_timeout;
  request.first_byte_timeout = options.first_byte_timeout;
  request.idle_timeout = options.idle_timeout;
  *key_out = *std::move(key);
  return request;
}

std::string Endpoint::base() const {
  std::string base = options.url.target;
  while (base.ends_with('/')) base.pop_back();
  return base;
}

std::string Endpoint::root() const {
  std::string root = base();
  if (root.ends_with("/v1")) root.resize(root.size() - 3);
  return root;
}

Error Endpoint::closed_error() const {
  return make_error(ErrorCode::unavailable, "Model " + options.name + " is not running any more.");
}

Error Endpoint::error_of_end(const http::CallEnd& end, std::optional<std::chrono::steady_clock::time_point> deadline,
                             const Upstream& upstream) const {
  if (is_closed()) return closed_error();
  if (deadline && end.status.error().code == ErrorCode::timeout && std::chrono::steady_clock::now() >= *deadline)
    return make_error(ErrorCode::timeout, "The request's time limit has passed.");
  return error_of_call(end, upstream);
}

Result<std::uint64_t> Endpoint::enter() {
  std::unique_lock lock(mutex_);
  if (closed_.load()) return closed_error();
  if (running_.size() >= options.max_requests) {
    lock.unlock();
    stats.refused_full();
    Error error = make_error(ErrorCode::overloaded, "Model " + options.name + " already has " +
                                                        std::to_string(options.max_requests) + " requests running.");
    error.retry_after_s = 1;
    return error;
  }
  running_.emplace(++last_id_, nullptr);
  return last_id_;
}

void Endpoint::began(std::uint64_t id, std::shared_ptr<http::Call> call) {
  std::unique_lock lock(mutex_);
  const auto found = running_.find(id);
  if (found == running_.end()) return;
  found->second = std::move(call);
  if (!closed_.load()) return;
  call = found->second;
  lock.unlock();
  call->fail(closed_error());
}

void Endpoint::cancel(std::uint64_t id) {
  std::shared_ptr<http::Call> call;
  {
    std::lock_guard lock(mutex_);
    if (const auto found = running_.find(id); found != running_.end()) call = found->second;
  }
  if (call != nullptr) call->cancel();
}

void Endpoint::leave(std::uint64_t id) {
  std::shared_ptr<http::Call> call;
  std::lock_guard lock(mutex_);
  const auto found = running_.find(id);
  if (found == running_.end()) return;
  call = std::move(found->second);  // outlives the lock
  running_.erase(found);
}

void Endpoint::close() {
  std::vector<std::shared_ptr<http::Call>> calls;
  {
    std::lock_guard lock(mutex_);
    closed_.store(true);
    for (const auto& [id, call] : running_)
      if (call != nullptr) calls.push_back(call);
  }
  for (const auto& call : calls) call->fail(closed_error());
}

}  // namespace xgen::remote
