#include "http/client.h"

#include <pthread.h>

#include <algorithm>
#include <ctime>
#include <future>

#include "base/log.h"
#include "http/client_loop.h"

namespace xgen::http {

using Clock = std::chrono::steady_clock;
using SysError = boost::system::error_code;

LoopTurn::LoopTurn(const ClientLoop& loop) {
  if (loop.host() != nullptr) turn_.emplace(*loop.host());
}

ClientLoop::ClientLoop(std::shared_ptr<ClientState> shared, std::shared_ptr<IoThread> host)
    : shared_(std::move(shared)),
      host_(std::move(host)),
      own_context_(host_ == nullptr ? std::make_unique<boost::asio::io_context>(1) : nullptr),
      context_(host_ == nullptr ? *own_context_ : host_->context()) {}
ClientLoop::~ClientLoop() = default;

// Calls contain their own faults; this is for the little that is done between them.
void ClientLoop::start() {
  if (host_ != nullptr) {
    const bool running = host_->before_stop([weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->shut_down();
    });
    std::lock_guard lock(mutex_);
    stopped_ = !running;
    if (stopped_) guard_.reset();
    return;
  }
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

void ClientLoop::shut_down() {
  {
    std::lock_guard lock(mutex_);
    if (stopped_) return;
  }
  while (!calls_.empty()) {
    const auto call = *calls_.begin();
    call->finish(make_error(ErrorCode::cancelled, "the HTTP client is closed"));
    calls_.erase(call);
  }
  for (auto& [origin, links] : kept_)
    for (const auto& link : links) link->close();
  kept_.clear();
  for (boost::asio::steady_timer* timer : timers_) timer->cancel();
  sweep_timer_.cancel();
  std::lock_guard lock(mutex_);
  stopped_ = true;
  guard_.reset();
}

double ClientLoop::thread_seconds() {
  clockid_t clock{};
  timespec used{};
  if (pthread_getcpuclockid(thread_.native_handle(), &clock) != 0 || clock_gettime(clock, &used) != 0) return 0;
  return static_cast<double>(used.tv_sec) + 1e-9 * static_cast<double>(used.tv_nsec);
}

void ClientLoop::stop() {
  std::promise<void> done;
  const bool posted = post([this, &done] {
    shut_down();
    done.set_value();
  });
  if (thread_.joinable())
    thread_.join();
  else if (posted)
    done.get_future().wait();
}

void ClientLoop::look_up(const std::string& host, std::function<void(Client::Addresses)> done) {
  shared_->names->start(host, [weak = weak_from_this(), done = std::move(done)](Client::Addresses found) {
    if (const auto self = weak.lock())
      self->post([done, found = std::move(found)]() mutable { done(std::move(found)); });
  });
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
  sweep_timer_.async_wait([self = shared_from_this()](SysError error) {
    if (!error) self->sweep();
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
  void cancel() override { call_->cancel(); }
  void fail(Error error) override { call_->fail(std::move(error)); }

 private:
  std::shared_ptr<ClientCall> call_;
};

// A timer of the loop. Destroying it leaves the loop's part behind, which does nothing any more.
class LoopTimer final : public Client::Timer {
 public:
  LoopTimer(std::shared_ptr<ClientLoop> loop, std::chrono::milliseconds delay, std::function<void()> work)
      : loop_(std::move(loop)), state_(std::make_shared<State>(loop_->context(), std::move(work))) {
    loop_->post([state = state_, loop = loop_, delay] {
      if (state->cancelled.load()) return;
      state->timer.expires_after(delay);
      loop->timers().insert(&state->timer);
      state->timer.async_wait([state, loop](SysError error) {
        const LoopTurn turn(*loop);
        loop->timers().erase(&state->timer);
        if (!error && !state->cancelled.load()) state->work();
      });
    });
  }
  ~LoopTimer() override {
    state_->cancelled.store(true);
    loop_->post([state = state_] { state->timer.cancel(); });
  }
  LoopTimer(const LoopTimer&) = delete;
  LoopTimer& operator=(const LoopTimer&) = delete;

 private:
  struct State {
    State(boost::asio::io_context& context, std::function<void()> given) : timer(context), work(std::move(given)) {}
    boost::asio::steady_timer timer;
    std::function<void()> work;
    std::atomic<bool> cancelled{false};
  };
  std::shared_ptr<ClientLoop> loop_;
  std::shared_ptr<State> state_;
};

}  // namespace

struct Client::Impl {
  explicit Impl(ClientOptions options) : state(std::make_shared<ClientState>(std::move(options))) {}

  void add_loop(std::shared_ptr<IoThread> host) {
    loops.push_back(std::make_shared<ClientLoop>(state, std::move(host)));
    loops.back()->start();
  }
  // This thread's own where it has one.
  const std::shared_ptr<ClientLoop>& choose() {
    if (const IoThread* here = IoThread::here(); here != nullptr)
      for (const auto& loop : loops)
        if (loop->host() == here) return loop;
    return loops[next.fetch_add(1, std::memory_order_relaxed) % loops.size()];
  }

  std::shared_ptr<ClientState> state;
  std::vector<std::shared_ptr<ClientLoop>> loops;
  std::atomic<std::size_t> next{0};
};

Client::Client(ClientOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {
  for (int i = 0; i < std::max(1, impl_->state->options.threads); ++i) impl_->add_loop(nullptr);
}

Client::Client(ClientOptions options, const Server& server) : impl_(std::make_unique<Impl>(std::move(options))) {
  for (auto& thread : server.threads()) impl_->add_loop(std::move(thread));
}

Client::~Client() {
  for (const auto& loop : impl_->loops) loop->stop();
}

std::unique_ptr<Call> Client::start(ClientRequest request, std::shared_ptr<CallListener> listener) {
  const auto& loop = impl_->choose();
  auto call = std::make_shared<ClientCall>(loop, std::move(request), std::move(listener));
  if (!loop->post([call] { call->begin(); }))
    call->finish(make_error(ErrorCode::cancelled, "the HTTP client is closed"));
  return std::make_unique<Handle>(std::move(call));
}

std::unique_ptr<Client::Timer> Client::after(std::chrono::milliseconds delay, std::function<void()> work) {
  return std::make_unique<LoopTimer>(impl_->loops.front(), delay, std::move(work));
}

void Client::resolve(const std::string& host, std::function<void(Addresses)> done) {
  impl_->loops.front()->look_up(host, std::move(done));
}

Client::Counts Client::counts() const {
  const ClientState& state = *impl_->state;
  return {state.opened.load(), state.reused.load(), state.retried.load(), state.running.load(), state.idle.load()};
}

std::vector<double> Client::thread_seconds() const {
  std::vector<double> out;
  for (const auto& loop : impl_->loops)
    if (loop->host() == nullptr) out.push_back(loop->thread_seconds());
  return out;
}

}  // namespace xgen::http
