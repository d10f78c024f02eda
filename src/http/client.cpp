#include "http/client.h"

#include <algorithm>

#include "base/log.h"
#include "http/client_loop.h"

namespace xgen::http {

using Clock = std::chrono::steady_clock;
using SysError = boost::system::error_code;

ClientLoop::ClientLoop(std::shared_ptr<ClientState> shared) : shared_(std::move(shared)) {}
ClientLoop::~ClientLoop() = default;

// Calls contain their own faults; this is for the little that is done between them.
void ClientLoop::start() {
  thread_ = std::thread([this] {
    for (;;) {
      try {
        context_.run();
        return;
      } catch (const std::exception& fault) {
        log::error("http", "fault in the client's event loop", {{"reason", fault.what()}});
      }
    }
  });
}

void ClientLoop::stop() {
  post([this] {
    while (!calls_.empty()) {
      const auto call = *calls_.begin();
      call->finish(make_error(ErrorCode::cancelled, "the HTTP client is closed"));
      calls_.erase(call);
    }
    for (auto& [origin, links] : kept_)
      for (const auto& link : links) link->close();
    kept_.clear();
    sweep_timer_.cancel();
    resolver_.cancel();
    std::lock_guard lock(mutex_);
    stopped_ = true;
    guard_.reset();
  });
  thread_.join();
}

// ---- Kept connections ----

std::shared_ptr<ClientLink> ClientLoop::take(const std::string& origin) {
  const auto found = kept_.find(origin);
  if (found == kept_.end()) return nullptr;
  auto link = std::move(found->second.back());
  found->second.pop_back();
  if (found->second.empty()) kept_.erase(found);
  shared_->idle.fetch_sub(1, std::memory_order_relaxed);
  if (Clock::now() - link->born < shared_->options.max_connection_age) return link;
  link->close();
  return nullptr;
}

void ClientLoop::keep(std::shared_ptr<ClientLink> link) {
  const auto now = Clock::now();
  auto& links = kept_[link->origin()];
  if (links.size() >= shared_->options.max_idle_per_origin || now - link->born >= shared_->options.max_connection_age) {
    link->close();
    if (links.empty()) kept_.erase(link->origin());
    return;
  }
  link->idle_since = now;
  link->watch();
  links.push_back(std::move(link));
  shared_->idle.fetch_add(1, std::memory_order_relaxed);
  if (!sweeping_) arm_sweep();
}

void ClientLoop::forget(const std::shared_ptr<ClientLink>& link) {
  const auto found = kept_.find(link->origin());
  if (found == kept_.end()) return;
  if (std::erase(found->second, link) > 0) shared_->idle.fetch_sub(1, std::memory_order_relaxed);
  if (found->second.empty()) kept_.erase(found);
}

// The server closes it, or says what nobody asked for; TLS may have messages of its own.
void ClientLoop::on_idle_readable(const std::shared_ptr<ClientLink>& link) {
  if (link->read(buffer_.data(), buffer_.size()).kind == IoResult::Kind::want_read) return link->watch();
  forget(link);
  link->close();
}

void ClientLoop::arm_sweep() {
  sweeping_ = true;
  auto oldest = Clock::time_point::max();
  for (const auto& [origin, links] : kept_) oldest = std::min(oldest, links.front()->idle_since);
  sweep_timer_.expires_at(oldest + shared_->options.keep_idle);
  sweep_timer_.async_wait([this](SysError error) {
    if (!error) sweep();
  });
}

void ClientLoop::sweep() {
  sweeping_ = false;
  const auto limit = Clock::now() - shared_->options.keep_idle;
  for (auto each = kept_.begin(); each != kept_.end();) {
    auto& links = each->second;
    const auto fresh =
        std::find_if(links.begin(), links.end(), [&](const auto& link) { return link->idle_since > limit; });
    for (auto link = links.begin(); link != fresh; ++link) (*link)->close();
    shared_->idle.fetch_sub(static_cast<std::size_t>(fresh - links.begin()), std::memory_order_relaxed);
    links.erase(links.begin(), fresh);
    each = links.empty() ? kept_.erase(each) : std::next(each);
  }
  if (!kept_.empty()) arm_sweep();
}

// ---- The client ----

namespace {

class Handle final : public Call {
 public:
  explicit Handle(std::shared_ptr<ClientCall> call) : call_(std::move(call)) {}
  ~Handle() override { call_->cancel(); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  void pause() override { call_->pause(); }
  void resume() override { call_->resume(); }

 private:
  std::shared_ptr<ClientCall> call_;
};

}  // namespace

struct Client::Impl {
  std::shared_ptr<ClientState> state;
  std::vector<std::shared_ptr<ClientLoop>> loops;
  std::atomic<std::size_t> next{0};
};

Client::Client(ClientOptions options) : impl_(std::make_unique<Impl>()) {
  impl_->state = std::make_shared<ClientState>(std::move(options));
  for (int i = 0; i < std::max(1, impl_->state->options.threads); ++i) {
    impl_->loops.push_back(std::make_shared<ClientLoop>(impl_->state));
    impl_->loops.back()->start();
  }
}

Client::~Client() {
  for (const auto& loop : impl_->loops) loop->stop();
}

std::unique_ptr<Call> Client::start(ClientRequest request, std::shared_ptr<CallListener> listener) {
  const auto& loop = impl_->loops[impl_->next.fetch_add(1, std::memory_order_relaxed) % impl_->loops.size()];
  auto call = std::make_shared<ClientCall>(loop, std::move(request), std::move(listener));
  loop->post([call] { call->begin(); });
  return std::make_unique<Handle>(std::move(call));
}

Client::Counts Client::counts() const {
  const ClientState& state = *impl_->state;
  return {state.opened.load(), state.reused.load(), state.retried.load(), state.running.load(), state.idle.load()};
}

}  // namespace xgen::http
