// Threads: each IoThread runs an io_context of its own, and a connection lives on one of them for good, so its reading
// and parsing need no locks. Only the Outbox of a connection is shared with other threads: they append finished bytes
// under its mutex and put the connection on its thread's inbox, once until it is served; a busy inbox costs one wake-up
// of the thread for any number of connections. The event loop serves the inbox at the end of every turn.
#include "http/server.h"

#include <poll.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/intrusive/list.hpp>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/log.h"
#include "http/request_parser.h"
#include "http/response_writer.h"

namespace xgen::http {
namespace {

namespace asio = boost::asio;
namespace intrusive = boost::intrusive;
using asio::ip::tcp;
using Clock = std::chrono::steady_clock;
using SysError = boost::system::error_code;
using std::chrono::milliseconds;

constexpr std::size_t kReadSize = 64 << 10;      // per read, into a buffer that the thread's connections share
constexpr std::size_t kMaxPipelined = 64 << 10;  // bytes kept of later requests while one is answered
constexpr std::size_t kKeepCapacity = 2 << 10;   // a larger buffer is freed when it has become empty
constexpr milliseconds kLinger{5'000};           // how long the rest of a refused request is read and dropped
constexpr milliseconds kGoneCheck{250};          // how often a connection that is not being read is looked at

class Connection;
class IoThread;

// What every part of one server shares.
struct Shared {
  ServerOptions options;
  Handler handler;
  ErrorPage error_page;
  std::atomic<bool> close_after_answer{false};
  std::atomic<bool> draining{false};
  std::atomic<std::size_t> open{0};
  std::atomic<std::size_t> active{0};    // connections inside a request or its answer
  std::atomic<std::size_t> arriving{0};  // bytes of unfinished bodies, beyond the first kReadSize of each
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
enum class Wait : unsigned char { idle, head, body, write, linger, gone_check, none };
constexpr std::size_t kWaits = static_cast<std::size_t>(Wait::none);

class IoThread {
 public:
  explicit IoThread(std::shared_ptr<Shared> shared) : shared_(std::move(shared)), timer_(context_) {}

  asio::io_context& context() { return context_; }
  Shared& shared() { return *shared_; }
  std::array<char, kReadSize>& read_buffer() { return read_buffer_; }
  std::atomic<std::size_t>& open() { return open_; }

  void start() {
    thread_ = std::thread([this] { context_.run(); });
  }
  // Closes every connection and ends the thread. Later calls from exchanges have no effect.
  void stop();
  void drain();

  // Thread-safe: has the connection served soon.
  void push(std::shared_ptr<Connection> connection);

  void begin_wait(Connection& connection, Wait wait);

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

  void serve_inbox();
  void arm_timer(Clock::time_point at);
  void on_timer();

  static thread_local IoThread* current;

  std::shared_ptr<Shared> shared_;
  asio::io_context context_{1};
  asio::executor_work_guard<asio::io_context::executor_type> guard_{context_.get_executor()};
  asio::steady_timer timer_;
  Clock::time_point timer_at_ = Clock::time_point::max();
  std::thread thread_;
  std::atomic<std::size_t> open_{0};
  std::array<char, kReadSize> read_buffer_;

  std::mutex inbox_mutex_;
  bool stopped_ = false;
  std::vector<std::shared_ptr<Connection>> inbox_;
  std::vector<std::shared_ptr<Connection>> serving_;

  using Hook = intrusive::list_member_hook<intrusive::link_mode<intrusive::auto_unlink>>;
  struct Lists;
  std::unique_ptr<Lists> lists_;
};

thread_local IoThread* IoThread::current = nullptr;

class HttpExchange;

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<IoThread> thread, tcp::socket socket)
      : thread_(std::move(thread)), socket_(std::move(socket)) {
    thread_->shared().open.fetch_add(1);
    thread_->open().fetch_add(1);
  }
  ~Connection() {
    set_active(false);
    count_body(0);
    thread_->open().fetch_sub(1);
    thread_->shared().open.fetch_sub(1);
  }

  // On the connection's thread.
  void start();
  void refuse();
  void serve();
  void on_deadline();
  void shut();
  void drain();

  // From any thread, for the exchange `id`; calls of exchanges that are over have no effect.
  void respond(std::uint64_t id, const Response& response);
  void begin_stream(std::uint64_t id, int status, std::string_view content_type, const Headers& headers);
  void write(std::uint64_t id, std::string_view chunk);
  void end_stream(std::uint64_t id);
  void abandon(std::uint64_t id, const Request& request);
  void set_listener(std::uint64_t id, std::shared_ptr<ExchangeListener> listener);
  void wake();
  bool exchange_closed(std::uint64_t id);
  std::size_t pending() const { return pending_.load(); }

 private:
  friend class IoThread;

  asio::awaitable<void> read_loop();
  bool on_readable();
  void take(std::string_view bytes);
  void process_input();
  std::size_t parse(std::string_view bytes);
  void dispatch();
  void answer_fault(int status, std::string message);
  void flush();
  void complete();
  void linger();
  void gone();
  void set_active(bool active);
  bool count_body(std::size_t bytes);
  void wait(Wait kind) { thread_->begin_wait(*this, kind); }
  void schedule();
  // Under the outbox's mutex: whether exchange `id` may still add to its answer.
  bool open_for(std::uint64_t id) const { return box_.id == id && !box_.gone && !box_.finished && !box_.cut; }

  std::shared_ptr<IoThread> thread_;  // first: the io_context must outlive the socket
  tcp::socket socket_;

  // Of the connection's thread only.
  std::string remote_;
  std::string input_;   // received, not consumed
  std::string output_;  // being sent
  std::size_t sent_ = 0;
  std::shared_ptr<HttpExchange> incoming_;  // the request being read
  std::unique_ptr<RequestParser> parser_;
  std::size_t counted_ = 0;  // of the body being read, in Shared::arriving
  bool running_ = false;     // an exchange is being answered
  bool active_ = false;      // a request is being read or answered
  bool processing_ = false;
  bool reading_ = false;  // a read is pending
  bool write_blocked_ = false;
  bool sent_continue_ = false;
  bool peer_done_ = false;    // the client has sent its last byte
  bool last_answer_ = false;  // nothing more is read after the bytes in output_
  bool discarding_ = false;   // lingering: what comes is dropped
  Wait wait_ = Wait::none;
  Clock::time_point deadline_{};
  IoThread::Hook wait_hook_;
  IoThread::Hook thread_hook_;

  // Shared with the threads that answer.
  std::atomic<bool> scheduled_{false};
  std::atomic<bool> wake_{false};
  std::atomic<bool> backlog_{false};  // more than kHighWater bytes were pending: on_wake() is due when they are sent
  std::atomic<std::size_t> pending_{0};
  std::mutex mutex_;
  struct Outbox {
    std::uint64_t id = 0;  // of the exchange being answered
    bool begun = false;    // its head is written
    bool finished = true;  // its last byte is written
    bool cut = false;      // its stream was left open
    bool gone = false;     // the client is
    AnswerForm form;
    std::string bytes;
    std::shared_ptr<ExchangeListener> listener;
  } box_;
};

struct IoThread::Lists {
  using WaitList = intrusive::list<Connection, intrusive::member_hook<Connection, Hook, &Connection::wait_hook_>,
                                   intrusive::constant_time_size<false>>;
  using AllList = intrusive::list<Connection, intrusive::member_hook<Connection, Hook, &Connection::thread_hook_>,
                                  intrusive::constant_time_size<false>>;
  std::array<WaitList, kWaits> waiting;
  AllList all;
};

class HttpExchange final : public Exchange {
 public:
  explicit HttpExchange(std::shared_ptr<Connection> connection) : connection_(std::move(connection)) {}
  ~HttpExchange() override {
    if (id_ != 0) connection_->abandon(id_, request_);
  }
  HttpExchange(const HttpExchange&) = delete;
  HttpExchange& operator=(const HttpExchange&) = delete;

  Request& request() override { return request_; }
  void respond(Response response) override { connection_->respond(id_, response); }
  void begin_stream(int status, std::string content_type, Headers headers) override {
    connection_->begin_stream(id_, status, content_type, headers);
  }
  void write(std::string_view chunk) override { connection_->write(id_, chunk); }
  void end_stream() override { connection_->end_stream(id_); }
  std::size_t pending_bytes() const override { return connection_->pending(); }
  void set_listener(std::shared_ptr<ExchangeListener> listener) override {
    connection_->set_listener(id_, std::move(listener));
  }
  void wake() override { connection_->wake(); }
  bool closed() const override { return connection_->exchange_closed(id_); }

  void begin(std::uint64_t id) { id_ = id; }

 private:
  std::shared_ptr<Connection> connection_;
  Request request_;
  std::uint64_t id_ = 0;  // 0 until dispatched
};

// ---- IoThread ----

void IoThread::add(Connection& connection) {
  if (!lists_) lists_ = std::make_unique<Lists>();
  lists_->all.push_back(connection);
}

void IoThread::stop() {
  asio::post(context_, [this] {
    {
      Turn turn(*this);
      if (lists_) {
        std::vector<std::shared_ptr<Connection>> all;
        for (Connection& connection : lists_->all) all.push_back(connection.shared_from_this());
        for (const auto& connection : all) connection->shut();
      }
      timer_.cancel();
    }
    std::lock_guard lock(inbox_mutex_);
    stopped_ = true;
    guard_.reset();
  });
  if (thread_.joinable())
    thread_.join();
  else
    context_.run();  // never started: the clean-up still has to run
  std::lock_guard lock(inbox_mutex_);
  inbox_.clear();
}

void IoThread::drain() {
  asio::post(context_, [this] {
    Turn turn(*this);
    if (!lists_) return;
    std::vector<std::shared_ptr<Connection>> all;
    for (Connection& connection : lists_->all) all.push_back(connection.shared_from_this());
    for (const auto& connection : all) connection->drain();
  });
}

void IoThread::push(std::shared_ptr<Connection> connection) {
  bool first = false;
  {
    std::lock_guard lock(inbox_mutex_);
    if (stopped_) return;
    first = inbox_.empty();
    inbox_.push_back(std::move(connection));
  }
  if (first && current != this) asio::post(context_, [this] { Turn turn(*this); });
}

// One batch only: a thread that answers without pause must not keep this one from its sockets and timers.
void IoThread::serve_inbox() {
  {
    std::lock_guard lock(inbox_mutex_);
    if (inbox_.empty()) return;
    serving_.swap(inbox_);
  }
  for (const auto& connection : serving_) connection->serve();
  serving_.clear();
  std::lock_guard lock(inbox_mutex_);
  if (!inbox_.empty()) asio::post(context_, [this] { Turn turn(*this); });
}

void IoThread::begin_wait(Connection& connection, Wait wait) {
  connection.wait_hook_.unlink();
  connection.wait_ = wait;
  if (wait == Wait::none) return;
  const ServerOptions& options = shared_->options;
  const std::array<milliseconds, kWaits> length{
      options.idle_timeout, options.header_timeout, options.body_timeout, options.write_timeout, kLinger, kGoneCheck};
  connection.deadline_ = Clock::now() + length[static_cast<std::size_t>(wait)];
  lists_->waiting[static_cast<std::size_t>(wait)].push_back(connection);
  if (connection.deadline_ < timer_at_) arm_timer(connection.deadline_);
}

void IoThread::arm_timer(Clock::time_point at) {
  timer_at_ = at;
  timer_.expires_at(at);
  timer_.async_wait([this](SysError error) {
    if (!error) on_timer();
  });
}

// The timer is only ever moved to an earlier time; when it fires it is set to the next deadline there is, if any.
void IoThread::on_timer() {
  Turn turn(*this);
  timer_at_ = Clock::time_point::max();
  const auto now = Clock::now();
  std::vector<std::shared_ptr<Connection>> due;
  auto next = Clock::time_point::max();
  for (auto& list : lists_->waiting) {
    for (Connection& connection : list) {
      if (connection.deadline_ > now) {
        next = std::min(next, connection.deadline_);
        break;
      }
      due.push_back(connection.shared_from_this());
    }
  }
  for (const auto& connection : due) connection->on_deadline();
  if (next < timer_at_) arm_timer(next);
}

// ---- Connection: input ----

void Connection::start() {
  SysError error;
  const auto peer = socket_.remote_endpoint(error);
  if (!error) remote_ = peer.address().to_string() + ":" + std::to_string(peer.port());
  thread_->add(*this);
  wait(Wait::idle);
  reading_ = true;
  asio::co_spawn(thread_->context(), read_loop(), asio::detached);
}

void Connection::refuse() {
  thread_->add(*this);
  answer_fault(503, "This server has as many connections as it accepts.");
  if (reading_) return;  // it is sent, and the rest is being read and dropped
  reading_ = true;
  asio::co_spawn(thread_->context(), read_loop(), asio::detached);
}

// A read is kept pending while a request is answered, so that a client that goes away is noticed at once. Waiting for
// readiness instead of reading leaves idle connections without a buffer of their own.
asio::awaitable<void> Connection::read_loop() {
  const auto self = shared_from_this();
  for (;;) {
    SysError error;
    co_await socket_.async_wait(tcp::socket::wait_read, asio::redirect_error(asio::use_awaitable, error));
    IoThread::Turn turn(*thread_);
    if (error || !on_readable()) {
      reading_ = false;
      co_return;
    }
  }
}

// False when reading ends, for good or (full buffer) until complete() begins it anew.
bool Connection::on_readable() {
  if (!socket_.is_open()) return false;
  auto& buffer = thread_->read_buffer();
  SysError error;
  const std::size_t n = socket_.read_some(asio::buffer(buffer), error);
  if (error == asio::error::would_block || error == asio::error::try_again) return true;
  if (error || n == 0) {
    peer_done_ = true;
    bool answered = false;
    {
      std::lock_guard lock(mutex_);
      answered = box_.finished;
    }
    // A complete answer on its way out is still sent to a client that only closed its own side.
    if (error == asio::error::eof && (running_ || last_answer_) && !discarding_ && answered && pending() > 0)
      return false;
    gone();
    return false;
  }
  if (discarding_) return true;
  take({buffer.data(), n});
  if (running_ && input_.size() > kMaxPipelined) {
    if (wait_ == Wait::none) wait(Wait::gone_check);
    return false;
  }
  return socket_.is_open();
}

void Connection::take(std::string_view bytes) {
  if (last_answer_) return;
  if (!input_.empty() || running_) {
    input_.append(bytes);
    process_input();
    return;
  }
  // The common case: the request lies whole in the thread's buffer and is never copied.
  processing_ = true;
  std::size_t used = 0;
  while (used < bytes.size() && !running_ && !last_answer_) {
    const std::size_t n = parse(bytes.substr(used));
    if (n == 0) break;
    used += n;
  }
  processing_ = false;
  if (last_answer_) return;
  input_.append(bytes.substr(used));
}

void Connection::process_input() {
  if (processing_) return;  // an answer given inside the handler comes back here
  processing_ = true;
  std::size_t used = 0;
  while (used < input_.size() && !running_ && !last_answer_ && socket_.is_open()) {
    const std::size_t n = parse(std::string_view(input_).substr(used));
    if (n == 0) break;
    used += n;
  }
  processing_ = false;
  input_.erase(0, used);
  if (input_.empty() && input_.capacity() > kKeepCapacity) std::string().swap(input_);
}

// Consumes what it can of one request and starts its exchange once it is whole; 0 if more bytes are needed.
std::size_t Connection::parse(std::string_view bytes) {
  std::size_t blank = 0;
  if (!parser_) {
    // RFC 9112 2.2: an empty line before a request is ignored.
    if (bytes.starts_with("\r\n")) blank = 2;
    bytes.remove_prefix(blank);
    if (bytes.empty() || bytes == "\r") return blank;
    incoming_ = std::make_shared<HttpExchange>(shared_from_this());
    const ServerOptions& options = thread_->shared().options;
    parser_ = std::make_unique<RequestParser>(incoming_->request(), options.max_header_bytes, options.max_body_bytes);
    sent_continue_ = false;
    set_active(true);
    if (wait_ != Wait::head) wait(Wait::head);
  }
  const auto before = parser_->state();
  const std::size_t used = parser_->feed(bytes) + blank;
  switch (parser_->state()) {
    case RequestParser::State::head:
      break;
    case RequestParser::State::body:
      if (before == RequestParser::State::head) wait(Wait::body);
      if (!count_body(incoming_->request().body.size())) {
        answer_fault(503, "This server is receiving as many large requests as it accepts.");
        break;
      }
      if (parser_->expects_continue() && !sent_continue_ && parser_->http_1_1()) {
        sent_continue_ = true;
        output_ += "HTTP/1.1 100 Continue\r\n\r\n";
        pending_.fetch_add(output_.size());
        flush();
      }
      break;
    case RequestParser::State::done:
      dispatch();
      break;
    case RequestParser::State::failed:
      answer_fault(parser_->error_status(), parser_->error_message());
      break;
  }
  return used;
}

void Connection::dispatch() {
  Shared& shared = thread_->shared();
  const auto exchange = std::move(incoming_);
  count_body(0);
  Request& request = exchange->request();
  request.remote = remote_;
  std::uint64_t id = 0;
  {
    std::lock_guard lock(mutex_);
    id = ++box_.id;
    box_.begun = box_.finished = box_.cut = false;
    box_.form = {
        .http_1_1 = parser_->http_1_1(), .head_only = request.method == "HEAD", .close = !parser_->keep_alive()};
  }
  parser_.reset();
  running_ = true;
  wait(Wait::none);
  exchange->begin(id);
  try {
    shared.handler(exchange);
  } catch (const std::exception& fault) {
    log::error("http", std::string("fault in a request handler: ") + fault.what());
    exchange->respond(shared.error_page(request, 500, "The server failed to handle the request."));
  }
}

// Answers a fault that no handler sees, and ends the connection: where the next request begins is not known.
// NOLINTNEXTLINE(performance-unnecessary-value-param): the message may be the parser's, which goes before it is used.
void Connection::answer_fault(int status, std::string message) {
  AnswerForm form{.close = true};
  if (parser_) form.http_1_1 = parser_->http_1_1();
  parser_.reset();
  count_body(0);
  const auto exchange = std::move(incoming_);
  Request none;
  Request& request = exchange ? exchange->request() : none;
  request.remote = remote_;
  std::string().swap(input_);
  last_answer_ = true;
  set_active(true);
  const std::size_t before = output_.size();
  append_response(output_, thread_->shared().error_page(request, status, message), form);
  pending_.fetch_add(output_.size() - before);
  flush();
}

// ---- Connection: output ----

void Connection::schedule() {
  if (!scheduled_.exchange(true)) thread_->push(shared_from_this());
}

void Connection::serve() {
  if (wake_.exchange(false)) {
    std::shared_ptr<ExchangeListener> listener;
    {
      std::lock_guard lock(mutex_);
      listener = box_.listener;
    }
    if (listener) listener->on_wake();
  }
  // Not before: what on_wake() writes is sent below, and needs no further turn.
  scheduled_.store(false);
  if (wake_.load()) schedule();
  bool cut = false;
  {
    std::lock_guard lock(mutex_);
    cut = box_.cut && !box_.finished;
  }
  if (cut && running_)
    gone();
  else
    flush();
}

void Connection::flush() {
  if (write_blocked_ || !socket_.is_open()) return;
  bool finished = false;
  for (;;) {
    if (sent_ == output_.size()) {
      output_.clear();
      sent_ = 0;
      std::lock_guard lock(mutex_);
      output_.swap(box_.bytes);
      finished = box_.finished;
      if (output_.empty()) break;
    }
    SysError error;
    const std::size_t n = socket_.write_some(asio::buffer(output_.data() + sent_, output_.size() - sent_), error);
    if (error == asio::error::would_block || error == asio::error::try_again) {
      write_blocked_ = true;
      wait(Wait::write);
      socket_.async_wait(tcp::socket::wait_write, [self = shared_from_this()](SysError failed) {
        IoThread::Turn turn(*self->thread_);
        self->write_blocked_ = false;
        if (!failed) self->flush();
      });
      return;
    }
    if (error) {
      gone();
      return;
    }
    sent_ += n;
    pending_.fetch_sub(n);
  }
  // Everything is sent.
  if (wait_ == Wait::write)
    wait(parser_ ? (parser_->state() == RequestParser::State::head ? Wait::head : Wait::body) : Wait::none);
  if (output_.capacity() > kKeepCapacity) std::string().swap(output_);
  if (last_answer_) {
    linger();
  } else if (running_ && finished) {
    complete();
  } else if (running_ && backlog_.exchange(false)) {
    wake_.store(true);
    schedule();
  }
}

void Connection::complete() {
  std::shared_ptr<ExchangeListener> listener;  // released outside the lock
  bool close = false;
  {
    std::lock_guard lock(mutex_);
    listener = std::move(box_.listener);
    close = box_.form.close;
  }
  running_ = false;
  backlog_.store(false);
  wake_.store(false);
  if (close || peer_done_) {
    last_answer_ = true;
    linger();
    return;
  }
  set_active(false);
  if (thread_->shared().draining.load()) {
    shut();
    return;
  }
  wait(Wait::idle);
  if (!input_.empty()) process_input();
  if (!reading_ && !peer_done_ && socket_.is_open() && !last_answer_) {
    reading_ = true;
    asio::co_spawn(thread_->context(), read_loop(), asio::detached);
  }
}

// Closing a socket that has unread bytes resets the connection, and the client may lose the answer it was sent. So the
// sending side is shut first and what still comes is dropped for a while.
void Connection::linger() {
  set_active(false);
  if (peer_done_) {
    shut();
    return;
  }
  SysError ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  discarding_ = true;
  std::string().swap(input_);
  wait(Wait::linger);
  if (!reading_) {
    reading_ = true;
    asio::co_spawn(thread_->context(), read_loop(), asio::detached);
  }
}

void Connection::gone() {
  std::shared_ptr<ExchangeListener> listener;
  {
    std::lock_guard lock(mutex_);
    box_.gone = true;
    std::string().swap(box_.bytes);
    if (running_) {
      listener = std::move(box_.listener);
      box_.listener.reset();
    }
  }
  const bool told = running_;
  running_ = false;
  pending_.store(0);
  shut();
  if (told && listener) listener->on_close();
}

// Closes the socket; the pending read or write ends and lets go of the connection.
void Connection::shut() {
  if (running_) {
    gone();
    return;
  }
  wait(Wait::none);
  thread_hook_.unlink();
  parser_.reset();
  incoming_.reset();
  count_body(0);
  std::string().swap(input_);
  std::string().swap(output_);
  sent_ = 0;
  set_active(false);
  {
    std::lock_guard lock(mutex_);
    box_.gone = true;
  }
  SysError ignored;
  socket_.close(ignored);
}

// A request that has not arrived whole would only be refused later, and a slow client would hold up the end.
void Connection::drain() {
  if (!active_)
    shut();
  else if (parser_)
    answer_fault(503, "This server is shutting down.");
}

void Connection::on_deadline() {
  switch (wait_) {
    case Wait::head:
      answer_fault(408, "The header of the request did not arrive in time.");
      break;
    case Wait::body:
      answer_fault(408, "The body of the request did not arrive in time.");
      break;
    case Wait::write:
      gone();
      break;
    case Wait::gone_check: {
      pollfd poll_fd{socket_.native_handle(), POLLRDHUP, 0};
      if (::poll(&poll_fd, 1, 0) > 0)
        gone();
      else
        wait(Wait::gone_check);
      break;
    }
    case Wait::idle:
    case Wait::linger:
      shut();
      break;
    case Wait::none:
      break;
  }
}

void Connection::set_active(bool active) {
  if (active == active_) return;
  active_ = active;
  if (active)
    thread_->shared().add_active();
  else
    thread_->shared().remove_active();
}

// Whether `bytes` of the body being read may be held.
bool Connection::count_body(std::size_t bytes) {
  const std::size_t large = bytes > kReadSize ? bytes - kReadSize : 0;
  if (large == counted_) return true;
  Shared& shared = thread_->shared();
  // Unsigned wrap-around makes this a subtraction where the body has gone.
  const std::size_t total = shared.arriving.fetch_add(large - counted_) + large - counted_;
  counted_ = large;
  return total <= std::max(shared.options.max_total_body_bytes, shared.options.max_body_bytes);
}

// ---- Connection: the answering side ----

void Connection::respond(std::uint64_t id, const Response& response) {
  {
    std::lock_guard lock(mutex_);
    if (!open_for(id) || box_.begun) return;
    box_.begun = box_.finished = true;
    box_.form.close |= thread_->shared().close_after_answer.load(std::memory_order_relaxed);
    const std::size_t before = box_.bytes.size();
    append_response(box_.bytes, response, box_.form);
    pending_.fetch_add(box_.bytes.size() - before, std::memory_order_relaxed);
  }
  schedule();
}

void Connection::begin_stream(std::uint64_t id, int status, std::string_view content_type, const Headers& headers) {
  {
    std::lock_guard lock(mutex_);
    if (!open_for(id) || box_.begun) return;
    box_.begun = true;
    box_.form.close |= !box_.form.http_1_1 || thread_->shared().close_after_answer.load(std::memory_order_relaxed);
    const std::size_t before = box_.bytes.size();
    append_stream_head(box_.bytes, status, content_type, headers, box_.form);
    pending_.fetch_add(box_.bytes.size() - before, std::memory_order_relaxed);
  }
  schedule();
}

void Connection::write(std::uint64_t id, std::string_view chunk) {
  if (chunk.empty()) return;  // an empty chunk would end the body
  {
    std::lock_guard lock(mutex_);
    if (!open_for(id) || !box_.begun || box_.form.head_only) return;
    const std::size_t before = box_.bytes.size();
    if (box_.form.http_1_1)
      append_chunk(box_.bytes, chunk);
    else
      box_.bytes += chunk;
    const std::size_t added = box_.bytes.size() - before;
    const std::size_t pending = pending_.fetch_add(added) + added;
    if (pending > Exchange::kHighWater) backlog_.store(true);
    if (pending > Exchange::kMaxBacklog) box_.cut = true;
  }
  schedule();
}

void Connection::end_stream(std::uint64_t id) {
  {
    std::lock_guard lock(mutex_);
    if (!open_for(id) || !box_.begun) return;
    box_.finished = true;
    if (box_.form.http_1_1 && !box_.form.head_only) {
      box_.bytes += kLastChunk;
      pending_.fetch_add(kLastChunk.size(), std::memory_order_relaxed);
    }
  }
  schedule();
}

void Connection::abandon(std::uint64_t id, const Request& request) {
  bool begun = false;
  {
    std::lock_guard lock(mutex_);
    if (!open_for(id)) return;
    begun = box_.begun;
    if (begun) box_.cut = true;
  }
  if (begun)
    schedule();
  else
    respond(id, thread_->shared().error_page(request, 500, "The server failed to answer the request."));
}

void Connection::set_listener(std::uint64_t id, std::shared_ptr<ExchangeListener> listener) {
  {
    std::lock_guard lock(mutex_);
    if (box_.id != id) return;
    if (!box_.gone) {
      if (!box_.finished) box_.listener = std::move(listener);
      return;
    }
  }
  listener->on_close();
}

// A late call, of an exchange that is over, finds no listener or wakes the next one for nothing.
void Connection::wake() {
  if (!wake_.exchange(true)) schedule();
}

bool Connection::exchange_closed(std::uint64_t id) {
  std::lock_guard lock(mutex_);
  return box_.gone || box_.id != id;
}

// ---- Server ----

class BeastServer final : public Server {
 public:
  BeastServer(std::shared_ptr<Shared> shared, std::vector<std::shared_ptr<IoThread>> threads)
      : shared_(std::move(shared)), threads_(std::move(threads)), acceptor_(threads_[0]->context()) {}

  ~BeastServer() override {
    stop_accepting();
    for (const auto& thread : threads_) thread->stop();
  }

  Status listen() {
    const ServerOptions& options = shared_->options;
    const std::string where = options.host + ":" + std::to_string(options.port);
    SysError error;
    asio::io_context resolving;
    tcp::resolver resolver(resolving);
    const auto found = resolver.resolve(options.host, std::to_string(options.port), tcp::resolver::passive, error);
    if (error || found.empty())
      return make_error(ErrorCode::invalid_argument, "cannot listen on " + where + ": " + error.message(), "host");
    // A name such as localhost may have several addresses; IPv4 is what clients try when they are told 127.0.0.1.
    auto chosen =
        std::find_if(found.begin(), found.end(), [](const auto& entry) { return entry.endpoint().address().is_v4(); });
    const tcp::endpoint endpoint = chosen == found.end() ? found.begin()->endpoint() : chosen->endpoint();
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(4096, error);
    if (!error) port_ = acceptor_.local_endpoint(error).port();
    if (!error) return {};
    std::string hint;
    if (error == asio::error::address_in_use) hint = " (another program listens on this port)";
    return make_error(ErrorCode::unavailable, "cannot listen on " + where + ": " + error.message() + hint, "port");
  }

  std::uint16_t port() const override { return port_; }

  void start() override {
    asio::co_spawn(threads_[0]->context(), accept_loop(), asio::detached);
    for (const auto& thread : threads_) thread->start();
  }

  void close_connections_after_answers() override { shared_->close_after_answer.store(true); }

  bool drain(milliseconds deadline) override {
    close_connections_after_answers();
    shared_->draining.store(true);
    stop_accepting();
    for (const auto& thread : threads_) thread->drain();
    std::unique_lock lock(shared_->drain_mutex);
    return shared_->drained.wait_for(lock, deadline, [this] { return shared_->active.load() == 0; });
  }

  std::size_t open_connections() const override { return shared_->open.load(); }

 private:
  void stop_accepting() {
    asio::post(threads_[0]->context(), [this] {
      SysError ignored;
      acceptor_.close(ignored);
    });
  }

  asio::awaitable<void> accept_loop() {
    asio::steady_timer pause(threads_[0]->context());
    while (acceptor_.is_open()) {
      const auto thread = *std::min_element(threads_.begin(), threads_.end(), [](const auto& a, const auto& b) {
        return a->open().load(std::memory_order_relaxed) < b->open().load(std::memory_order_relaxed);
      });
      SysError error;
      tcp::socket socket =
          co_await acceptor_.async_accept(thread->context(), asio::redirect_error(asio::use_awaitable, error));
      if (error == asio::error::operation_aborted || !acceptor_.is_open()) break;
      if (error) {
        // Out of descriptors or memory: the connection stays in the backlog until there is room.
        log::warn("http", "cannot accept a connection", {{"reason", error.message()}});
        pause.expires_after(milliseconds(100));
        co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
        continue;
      }
      adopt(thread, std::move(socket));
    }
  }

  void adopt(const std::shared_ptr<IoThread>& thread, tcp::socket socket) {
    SysError error;
    socket.non_blocking(true, error);
    // Without it a small write may wait for the acknowledgement of the one before: 40 ms with delayed ACKs.
    if (!error) socket.set_option(tcp::no_delay(true), error);
    if (error) return;
    const std::size_t open = shared_->open.load();
    const std::size_t limit = shared_->options.max_connections;
    if (open >= limit + 256) return;  // not even a refusal
    const bool refuse = open >= limit;
    auto connection = std::make_shared<Connection>(thread, std::move(socket));
    asio::post(thread->context(), [connection = std::move(connection), thread = thread.get(), refuse] {
      IoThread::Turn turn(*thread);
      if (refuse)
        connection->refuse();
      else
        connection->start();
    });
  }

  std::shared_ptr<Shared> shared_;
  std::vector<std::shared_ptr<IoThread>> threads_;
  tcp::acceptor acceptor_;
  std::uint16_t port_ = 0;
};

void raise_open_file_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

}  // namespace

std::string_view Request::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (key.size() == name.size() && std::equal(key.begin(), key.end(), name.begin(), [](char a, char b) {
          const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
          return lower(a) == lower(b);
        }))
      return value;
  }
  return {};
}

Result<std::unique_ptr<Server>> Server::bind(ServerOptions options, Handler handler, ErrorPage error_page) {
  raise_open_file_limit();
  auto shared = std::make_shared<Shared>();
  shared->options = std::move(options);
  shared->handler = std::move(handler);
  shared->error_page = std::move(error_page);
  std::vector<std::shared_ptr<IoThread>> threads;
  for (int i = 0; i < std::max(1, shared->options.threads); ++i) threads.push_back(std::make_shared<IoThread>(shared));
  auto server = std::make_unique<BeastServer>(shared, std::move(threads));
  if (Status status = server->listen(); !status.ok()) return std::move(status).error();
  return std::unique_ptr<Server>(std::move(server));
}

}  // namespace xgen::http
