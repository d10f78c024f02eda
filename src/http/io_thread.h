// IoThread: one thread of the server with its connections, their time-outs and the inbox through which other threads
// reach it. A header of this room alone: it includes Boost.
//
// Threads: each IoThread runs an io_context of its own, and a connection lives on one of them for good, so its reading
// and parsing need no locks. Only the Outbox of a connection is shared with other threads: they append finished bytes
// under its mutex and put the connection on its thread's inbox, once until it is served; a busy inbox costs one wake-up
// of the thread for any number of connections. The event loop serves the inbox at the end of every turn.
#pragma once

#include <array>
#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/intrusive/list_hook.hpp>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "http/server.h"
#include "http/slow_readers.h"

namespace xgen::http {

class Connection;

// Logs what must not end the process.
void report_fault(std::string_view where, const char* what) noexcept;

constexpr std::size_t kReadSize = 64 << 10;  // per read, into a buffer that the thread's connections share

// What every part of one server shares.
struct ServerState {
  explicit ServerState(ServerOptions given) : options(std::move(given)), slow_readers(options.max_unsent_bytes) {}

  ServerOptions options;
  Handler handler;
  ErrorPage error_page;
  HeadCheck head_check;
  std::atomic<bool> close_after_answer{false};
  std::atomic<bool> draining{false};
  std::atomic<std::size_t> open{0};
  std::atomic<std::size_t> active{0};  // connections inside a request or its answer
  std::atomic<std::size_t> bodies{0};  // bytes of all exchanges' bodies, beyond the first kReadSize of each
  SlowReaders slow_readers;
  std::mutex drain_mutex;
  std::condition_variable drained;

  void add_active() { active.fetch_add(1, std::memory_order_relaxed); }
  void remove_active() {
    if (active.fetch_sub(1) == 1 && draining.load()) {
      std::lock_guard lock(drain_mutex);
      drained.notify_all();
    }
  }
};

// The waits that have a deadline. All waits of one kind last equally long, so each kind's connections, in the order of
// beginning to wait, are in the order of their deadlines too: a plain list replaces a timer per connection.
enum class Wait : unsigned char { idle, first_head, head, body, write, linger, gone_check, none };
constexpr std::size_t kWaits = static_cast<std::size_t>(Wait::none);

class IoThread {
 public:
  explicit IoThread(std::shared_ptr<ServerState> shared);
  ~IoThread();
  IoThread(const IoThread&) = delete;
  IoThread& operator=(const IoThread&) = delete;

  boost::asio::io_context& context() { return context_; }
  ServerState& shared() { return *shared_; }
  std::array<char, kReadSize>& read_buffer() { return read_buffer_; }
  std::atomic<std::size_t>& open() { return open_; }

  void start();
  // Closes every connection and ends the thread. Later calls from exchanges have no effect.
  void stop();
  // Thread-safe: `work` runs on this thread, first when it stops. False if it has stopped already.
  bool before_stop(std::function<void()> work);
  // The server's thread that this code runs on; null on any other.
  static IoThread* here() { return current; }
  void drain();

  // Thread-safe: whether it has come round since the last call.
  bool moves();
  // Thread-safe: has the connection served soon.
  void push(const std::shared_ptr<Connection>& connection) noexcept;

  void begin_wait(Connection& connection, Wait wait);

  // Thread-safe: when the connection that has been in this wait the longest began it; time_point::max() if there is
  // none.
  std::chrono::steady_clock::time_point oldest(Wait wait) const {
    return std::chrono::steady_clock::time_point(
        std::chrono::steady_clock::duration(oldest_[static_cast<std::size_t>(wait)].load(std::memory_order_relaxed)));
  }
  // Thread-safe: soon closes the connection that has been in this wait the longest.
  void close_oldest(Wait wait);

  // Every piece of work on this thread happens inside a Turn, which ends by serving the inbox.
  class Turn {
   public:
    explicit Turn(IoThread& thread) : thread_(thread), outer_(current) { current = &thread; }
    ~Turn() {
      if (outer_ != &thread_) thread_.serve_inbox();
      current = outer_;
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    IoThread& thread_;
    IoThread* outer_;
  };

  void add(Connection& connection);

 private:
  friend class Turn;
  friend class Connection;
  struct ByWait;
  struct ByThread;

  struct InboxList;
  void serve_inbox() noexcept;
  void post_turn() noexcept;
  std::shared_ptr<Connection> take_from(InboxList& list);
  void publish_oldest(Wait wait);
  std::chrono::milliseconds length_of(Wait wait) const;
  void arm_timer(std::chrono::steady_clock::time_point at);
  void on_timer();

  static inline thread_local constinit IoThread* current = nullptr;

  std::shared_ptr<ServerState> shared_;
  boost::asio::io_context context_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> guard_{context_.get_executor()};
  boost::asio::steady_timer timer_;
  std::chrono::steady_clock::time_point timer_at_ = std::chrono::steady_clock::time_point::max();
  std::thread thread_;
  std::atomic<std::size_t> open_{0};
  std::atomic<bool> asked_{false};  // whether it moves
  std::array<char, kReadSize> read_buffer_;

  std::mutex inbox_mutex_;
  bool stopped_ = false;
  bool posted_ = false;  // a turn will come for what is in the inbox
  std::vector<std::function<void()>> before_stop_;

  using Hook = boost::intrusive::list_member_hook<boost::intrusive::link_mode<boost::intrusive::auto_unlink>>;
  using InboxHook = boost::intrusive::list_member_hook<>;
  struct Lists;
  std::unique_ptr<Lists> lists_;
  std::array<std::atomic<std::chrono::steady_clock::rep>, kWaits> oldest_;
};

}  // namespace xgen::http
