// The client's insides: a thread with its calls and kept connections. A header of this room alone: it includes Boost.
//
// A ClientLoop runs an io_context of its own, or shares that of a server's thread; its links and calls are touched on
// that thread only, so they need no locks. Other threads reach a call by posting to the loop. All its work happens in a
// LoopTurn: on a server's thread that is one of the server's turns, which serves what the work left for connections.
#pragma once

#include <array>
#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_set>
#include <utility>
#include <vector>

#include "http/client.h"
#include "http/io_thread.h"
#include "http/name_lookup.h"
#include "http/response_parser.h"
#include "http/tls.h"

namespace xgen::http {

class ClientCall;
class ClientLoop;

// What all loops of one client share.
struct ClientState {
  explicit ClientState(ClientOptions given) : options(std::move(given)) {}
  const ClientOptions options;
  const std::shared_ptr<NameLookup> names = std::make_shared<NameLookup>(options.look_up);
  std::atomic<std::size_t> running{0};
  std::atomic<std::size_t> idle{0};
  std::atomic<std::uint64_t> opened{0};
  std::atomic<std::uint64_t> reused{0};
  std::atomic<std::uint64_t> retried{0};
};

// One connection. It belongs to a call, or is kept for the next one.
class ClientLink : public std::enable_shared_from_this<ClientLink> {
 public:
  ClientLink(ClientLoop& loop, std::string origin);

  boost::asio::ip::tcp::socket& socket() { return socket_; }
  const std::string& origin() const { return origin_; }  // with the address and the files of TLS: what may share it
  void begin_tls(SSL_CTX* context, const std::string& host);
  bool encrypted() const { return tls_ != nullptr; }

  IoResult handshake() { return tls_->handshake(); }
  IoResult read(char* data, std::size_t size);
  IoResult write(std::string_view data);
  void close();

  // The call's on_readable() (the loop's on_idle_readable()) runs once when there is something to read.
  void watch();
  bool watching() const { return watching_; }
  // The call's on_writable() runs once.
  void await_writable();

  ClientCall* call = nullptr;  // null while kept
  std::chrono::steady_clock::time_point born;
  std::chrono::steady_clock::time_point idle_since;

 private:
  ClientLoop& loop_;
  boost::asio::ip::tcp::socket socket_;
  const std::string origin_;
  std::unique_ptr<TlsSession> tls_;
  bool watching_ = false;
};

// One call, from its start to its end. All but cancel(), fail(), pause() and resume() run on the loop's thread.
class ClientCall : public std::enable_shared_from_this<ClientCall> {
 public:
  ClientCall(std::shared_ptr<ClientLoop> loop, ClientRequest request, std::shared_ptr<CallListener> listener);
  ~ClientCall();
  ClientCall(const ClientCall&) = delete;
  ClientCall& operator=(const ClientCall&) = delete;

  void begin();
  void on_readable();
  void on_writable();
  void finish(Status status);

  void cancel();
  void fail(Error error);
  void pause() { paused_.store(true); }
  void resume();

 private:
  using Clock = std::chrono::steady_clock;
  using Phase = CallEnd::Phase;

  template <class Work>
  void contain(Work work) noexcept;
  Status check() const;
  std::string make_head() const;
  void connect();
  void try_next_address(const std::string& failure);
  void on_connected();
  void handshake();
  void send();
  void read();
  bool feed(std::string_view input);
  void on_ended(const std::string& reason, bool clean);
  void drop_link();
  void end(CallEnd end);
  void abandon();
  void set_deadline(Clock::time_point at);
  void arm();
  void on_timer();
  Error fault(ErrorCode code, std::string_view what) const;
  template <class Callback>
  bool tell(Callback callback);

  const std::shared_ptr<ClientLoop> loop_;
  ClientRequest request_;
  std::shared_ptr<CallListener> listener_;
  std::string origin_;
  Phase phase_ = Phase::connecting;
  std::shared_ptr<ClientLink> link_;
  bool reused_ = false;
  bool handshaking_ = false;
  bool writing_ = false;
  bool retried_ = false;
  int attempt_ = 0;  // of connecting; results of earlier ones are ignored
  std::vector<std::string> addresses_;
  std::size_t next_address_ = 0;
  Clock::time_point connect_deadline_;
  std::string head_;
  std::size_t sent_ = 0;  // of head and body
  ResponseParser parser_;
  std::uint64_t body_bytes_ = 0;
  boost::asio::steady_timer timer_;
  Clock::time_point deadline_ = Clock::time_point::max();
  Clock::time_point armed_ = Clock::time_point::max();
  const bool admitted_;  // within max_calls
  std::atomic<bool> cancelled_{false};
  std::atomic<bool> paused_{false};
  std::atomic<bool> over_{false};
};

class LoopTurn {
 public:
  explicit LoopTurn(const ClientLoop& loop);

 private:
  std::optional<IoThread::Turn> turn_;
};

class ClientLoop : public std::enable_shared_from_this<ClientLoop> {
 public:
  // `host`: a server's thread to live on; null: one of its own.
  ClientLoop(std::shared_ptr<ClientState> shared, std::shared_ptr<IoThread> host);
  ~ClientLoop();
  ClientLoop(const ClientLoop&) = delete;
  ClientLoop& operator=(const ClientLoop&) = delete;

  void start();
  // Ends every call, and the thread if it is the loop's own; what is posted later has no effect.
  void stop();
  // Thread-safe. Runs `work` on the loop's thread; false once it has stopped.
  template <class Work>
  bool post(Work work) {
    std::lock_guard lock(mutex_);
    if (stopped_) return false;
    boost::asio::post(context_, [self = shared_from_this(), work = std::move(work)]() mutable {
      const LoopTurn turn(*self);
      work();
    });
    return true;
  }
  IoThread* host() const { return host_.get(); }
  // Thread-safe, between start() and stop(): processor time of its own thread.
  double thread_seconds();
  // Thread-safe. `done` is called on the loop's thread, or never if it stops before.
  void look_up(const std::string& host, std::function<void(Client::Addresses)> done);

  // The rest on the loop's thread.
  void add(const std::shared_ptr<ClientCall>& call) { calls_.insert(call); }
  void remove(const std::shared_ptr<ClientCall>& call) { calls_.erase(call); }
  std::shared_ptr<ClientLink> take(const std::string& origin);
  void keep(std::shared_ptr<ClientLink> link);
  void on_idle_readable(const std::shared_ptr<ClientLink>& link);

  boost::asio::io_context& context() { return context_; }
  ClientState& shared() { return *shared_; }
  TlsContexts& tls() { return tls_; }
  std::array<char, kClientReadSize>& buffer() { return buffer_; }
  // Those of Client::after() that wait.
  std::unordered_set<boost::asio::steady_timer*>& timers() { return timers_; }

 private:
  void shut_down();
  void forget(const std::shared_ptr<ClientLink>& link);
  void arm_sweep();
  void sweep();

  const std::shared_ptr<ClientState> shared_;
  const std::shared_ptr<IoThread> host_;
  const std::unique_ptr<boost::asio::io_context> own_context_;  // without a host
  boost::asio::io_context& context_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> guard_{context_.get_executor()};
  boost::asio::steady_timer sweep_timer_{context_};
  bool sweeping_ = false;
  std::unordered_set<boost::asio::steady_timer*> timers_;
  TlsContexts tls_;
  std::unordered_set<std::shared_ptr<ClientCall>> calls_;
  std::map<std::string, std::vector<std::shared_ptr<ClientLink>>> kept_;  // by origin, longest kept first
  std::array<char, kClientReadSize> buffer_;
  std::thread thread_;
  std::mutex mutex_;
  bool stopped_ = false;
};

}  // namespace xgen::http
