#include "http/connection.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <exception>
#include <utility>

#include "base/log.h"
#include "http/server_tls.h"
#include "http/tls.h"

namespace xgen::http {

namespace asio = boost::asio;
using asio::ip::tcp;
using SysError = boost::system::error_code;

namespace {

constexpr std::size_t kMaxPipelined = 64 << 10;  // bytes kept of later requests while one is answered
constexpr std::size_t kKeepCapacity = 2 << 10;   // a larger buffer is freed when it has become empty

}  // namespace

class HttpExchange final : public Exchange {
 public:
  explicit HttpExchange(std::shared_ptr<Connection> connection) : connection_(std::move(connection)) {}
  ~HttpExchange() override {
    if (id_ != 0) connection_->abandon(id_, request_);
    if (counted_ > 0) connection_->shared().bodies.fetch_sub(counted_);
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
  // Counts the body as it is now, for as long as this lives: what is made of it may take as much. False if it and all
  // others are more than may be held.
  bool count_body() {
    if (request_.body.size() <= kReadSize + counted_) return true;
    ServerState& shared = connection_->shared();
    const std::size_t more = request_.body.size() - kReadSize - counted_;
    counted_ += more;
    return shared.bodies.fetch_add(more) + more <=
           std::max(shared.options.max_total_body_bytes, shared.options.max_body_bytes);
  }

 private:
  std::shared_ptr<Connection> connection_;
  Request request_;
  std::size_t counted_ = 0;  // in ServerState::bodies
  std::uint64_t id_ = 0;     // 0 until dispatched
};

Connection::Connection(std::shared_ptr<IoThread> thread, tcp::socket socket)
    : thread_(std::move(thread)), socket_(std::move(socket)) {
  thread_->shared().open.fetch_add(1);
  thread_->open().fetch_add(1);
}

Connection::~Connection() {
  set_active(false);
  set_closed();
  thread_->shared().slow_readers.hold(*this, 0);
}

// Runs a part of the connection's work. What is thrown there (by a handler's listener, or for want of memory) ends this
// connection and nothing else.
template <class Work>
void Connection::contain(std::string_view where, Work work) noexcept {
  try {
    try {
      work();
      return;
    } catch (const std::exception& fault) {
      report_fault(where, fault.what());
    } catch (...) {
      report_fault(where, "an exception of unknown type");
    }
    gone();
  } catch (...) {
    // Its listener may throw once more when it is told. The socket is closed by then.
    report_fault(where, "the end of a connection failed, too");
  }
}

// ---- Input ----

void Connection::start() {
  contain("a new connection", [this] {
    SysError error;
    const auto peer = socket_.remote_endpoint(error);
    if (!error) {
      const std::string address = peer.address().to_string();
      remote_ = (peer.address().is_v6() ? "[" + address + "]" : address) + ":" + std::to_string(peer.port());
    }
    thread_->add(*this);
    if (ServerTls* tls = thread_->shared().options.tls.get(); tls != nullptr) {
      tls_ = tls->accept(socket_.native_handle());
      handshaking_ = true;
    }
    wait(handshaking_ ? Wait::first_head : Wait::idle);
    begin_reading();
  });
}

void Connection::refuse() {
  contain("a refusal", [this] {
    thread_->add(*this);
    // Words would need a handshake first, which is more than a newcomer too many shall cost.
    if (thread_->shared().options.tls != nullptr) return shut();
    answer_fault(503, "This server has as many connections as server.max_connections allows.");
    if (!reading_ && socket_.is_open()) begin_reading();
  });
}

void Connection::begin_reading() {
  reading_ = true;
  asio::co_spawn(thread_->context(), read_loop(), [self = shared_from_this()](const std::exception_ptr& fault) {
    if (!fault) return;
    IoThread::Turn turn(*self->thread_);
    self->contain("a connection's input", [&] { std::rethrow_exception(fault); });
  });
}

// A read is kept pending while a request is answered, so that a client that goes away is noticed at once. Waiting for
// readiness instead of reading leaves idle connections without a buffer of their own.
asio::awaitable<void> Connection::read_loop() {
  const auto self = shared_from_this();
  for (;;) {
    SysError error;
    const auto awaited = read_awaits_write_ ? tcp::socket::wait_write : tcp::socket::wait_read;
    co_await socket_.async_wait(awaited, asio::redirect_error(asio::use_awaitable, error));
    IoThread::Turn turn(*thread_);
    bool more = false;
    if (!error) contain("a connection's input", [&] { more = on_readable(); });
    if (!more) {
      reading_ = false;
      co_return;
    }
  }
}

// False when reading ends, for good or (full buffer) until complete() begins it anew.
bool Connection::on_readable() {
  if (!socket_.is_open()) return false;
  if (handshaking_) return shake_hands();
  auto& buffer = thread_->read_buffer();
  const IoResult got = receive(buffer.data(), buffer.size());
  read_awaits_write_ = got.kind == IoResult::Kind::want_write;
  if (read_awaits_write_ || got.kind == IoResult::Kind::want_read) return true;
  if (got.kind != IoResult::Kind::done) {
    peer_done_ = true;
    bool answered = false;
    {
      std::lock_guard lock(mutex_);
      answered = box_.finished;
    }
    // A complete answer on its way out is still sent to a client that only closed its own side.
    if (got.kind == IoResult::Kind::closed && (running_ || last_answer_) && !discarding_ && answered && pending() > 0)
      return false;
    gone();
    return false;
  }
  if (discarding_) return true;
  take({buffer.data(), got.bytes});
  if (running_ && input_.size() > kMaxPipelined) {
    if (wait_ == Wait::none) wait(Wait::gone_check);
    return false;
  }
  return socket_.is_open();
}

static_assert(kReadSize >= TlsSession::kMostOfARecord);  // so that whatever is left to read shows at the socket

// What is only to be dropped is not decrypted.
IoResult Connection::receive(char* data, std::size_t size) {
  return tls_ != nullptr && !discarding_ ? tls_->read(data, size) : read_socket(socket_.native_handle(), data, size);
}

IoResult Connection::send(std::string_view data) {
  return tls_ != nullptr ? tls_->write(data) : write_socket(socket_.native_handle(), data);
}

// Goes as far with the TLS handshake as what has come allows; false when reading ends.
bool Connection::shake_hands() {
  // The very first byte alone tells: a later read may begin anywhere in a handshake's messages.
  if (char first = 0; !greeted_ && ::recv(socket_.native_handle(), &first, 1, MSG_PEEK) == 1) {
    greeted_ = true;
    if (first >= 'A' && first <= 'Z') {  // "GET /"
      handshaking_ = false;
      tls_.reset();
      answer_fault(400, "The client speaks plain HTTP, and this server TLS: use https://.");
      return socket_.is_open();
    }
  }
  const IoResult result = tls_->handshake();
  read_awaits_write_ = result.kind == IoResult::Kind::want_write;
  switch (result.kind) {
    case IoResult::Kind::want_read:
    case IoResult::Kind::want_write:
      return true;
    case IoResult::Kind::done:
      handshaking_ = false;
      certificate_ = tls_->peer_subject();
      wait(Wait::idle);
      return true;
    case IoResult::Kind::closed:  // as probes do
      log::debug("http", "a client left before its TLS handshake ended", {{"remote", remote_}});
      gone();
      return false;
    case IoResult::Kind::failed:
      log::info("http", "a TLS handshake failed", {{"remote", remote_}, {"reason", result.reason}});
      handshaking_ = false;
      last_answer_ = true;
      linger();  // the alert that tells the client why must not be lost
      return socket_.is_open();
  }
  return false;
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
    incoming_->request().remote = remote_;
    incoming_->request().certificate = certificate_;
    head_checked_ = false;
    set_active(true);
    wait(box_.id == 0 ? Wait::first_head : Wait::head);
  }
  const auto before = parser_->state();
  const std::size_t used = parser_->feed(bytes) + blank;
  const bool has_head =
      parser_->state() == RequestParser::State::body || parser_->state() == RequestParser::State::done;
  if (before == RequestParser::State::head && has_head) incoming_->request().arrival = std::chrono::steady_clock::now();
  switch (parser_->state()) {
    case RequestParser::State::head:
      break;
    case RequestParser::State::body:
      if (before == RequestParser::State::head) wait(Wait::body);
      if (may_send_body()) count_body();
      break;
    case RequestParser::State::done:
      if (count_body()) dispatch();
      break;
    case RequestParser::State::failed:
      answer_fault(parser_->error_status(), parser_->error_message());
      break;
  }
  return used;
}

// What the head alone decides is decided before the body is waited for; false if it has refused the request.
bool Connection::may_send_body() {
  if (std::exchange(head_checked_, true)) return true;
  const ServerState& shared = thread_->shared();
  if (shared.head_check) {
    if (const auto refusal = shared.head_check(incoming_->request())) {
      end_with(*refusal);
      return false;
    }
  }
  if (parser_->expects_continue() && parser_->http_1_1()) {
    output_ += "HTTP/1.1 100 Continue\r\n\r\n";
    pending_.fetch_add(output_.size());
    flush();
  }
  return true;
}

// False if the body is too much, which has been answered.
bool Connection::count_body() {
  if (incoming_->count_body()) return true;
  answer_fault(503, "This server holds as many large requests as it accepts.");
  return false;
}

void Connection::dispatch() {
  ServerState& shared = thread_->shared();
  const auto exchange = std::move(incoming_);
  Request& request = exchange->request();
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
  // Bytes that wait for a slow client (a 100 Continue behind an earlier answer) keep their time-out.
  if (!write_blocked_) wait(Wait::none);
  exchange->begin(id);
  try {
    shared.handler(exchange);
  } catch (const std::exception& fault) {
    report_fault("a request handler", fault.what());
    exchange->respond(shared.error_page(request, 500, "The server failed to handle the request."));
  }
}

// Answers a fault that no handler sees, and ends the connection: where the next request begins is not known.
void Connection::answer_fault(int status, std::string_view message) {
  Request none;
  none.remote = remote_;
  end_with(thread_->shared().error_page(incoming_ ? incoming_->request() : none, status, message));
}

// Answers the request that is being read, of which nothing more is.
void Connection::end_with(const Response& response) {
  AnswerForm form{.close = true};
  if (parser_) form.http_1_1 = parser_->http_1_1();
  if (incoming_) form.head_only = incoming_->request().method == "HEAD";
  parser_.reset();
  incoming_.reset();
  std::string().swap(input_);
  last_answer_ = true;
  set_active(true);
  const std::size_t before = output_.size();
  append_response(output_, response, form);
  pending_.fetch_add(output_.size() - before);
  flush();
}

// ---- Output ----

void Connection::schedule() {
  if (!scheduled_.exchange(true)) thread_->push(shared_from_this());
}

void Connection::serve() {
  contain("an answer", [this] { serve_outbox(); });
}

void Connection::serve_outbox() {
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
    cut = box_.cut;
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
      // Before it becomes the buffer that later bytes wait in, perhaps for long.
      if (output_.capacity() > kKeepCapacity) std::string().swap(output_);
      output_.clear();
      sent_ = 0;
      std::lock_guard lock(mutex_);
      output_.swap(box_.bytes);
      finished = box_.finished;
      box_.sending = output_.size();
      if (box_.behind) {
        box_.behind = !output_.empty();
        count_unsent();  // never more than before
      }
      if (output_.empty()) break;
    }
    const IoResult result = send(std::string_view(output_).substr(sent_));
    if (result.kind == IoResult::Kind::want_write || result.kind == IoResult::Kind::want_read) {
      write_blocked_ = true;
      wait(Wait::write);
      std::shared_ptr<Connection> given_up;
      {
        std::lock_guard lock(mutex_);
        box_.behind = true;
        given_up = count_unsent();
      }
      if (given_up) given_up->give_up();
      const auto awaited = result.kind == IoResult::Kind::want_read ? tcp::socket::wait_read : tcp::socket::wait_write;
      socket_.async_wait(awaited, [self = shared_from_this()](SysError failed) {
        IoThread::Turn turn(*self->thread_);
        self->write_blocked_ = false;
        if (!failed) self->contain("a connection's output", [&] { self->flush(); });
      });
      return;
    }
    if (result.kind != IoResult::Kind::done) {
      gone();
      return;
    }
    sent_ += result.bytes;
    pending_.fetch_sub(result.bytes);
  }
  // Everything is sent.
  if (wait_ == Wait::write) {
    if (parser_)
      wait(parser_->state() == RequestParser::State::head ? Wait::head : Wait::body);
    else
      wait(running_ && !reading_ ? Wait::gone_check : Wait::none);  // without reading nothing else notices its end
  }
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
    begin_reading();
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
  if (tls_ != nullptr) tls_->close();
  SysError ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  discarding_ = true;
  std::string().swap(input_);
  wait(Wait::linger);
  if (!reading_) {
    begin_reading();
  }
}

void Connection::gone() {
  std::shared_ptr<ExchangeListener> listener;
  {
    std::lock_guard lock(mutex_);
    box_.gone = true;
    std::string().swap(box_.bytes);
    box_.behind = false;
    count_unsent();
    if (running_) {
      listener = std::move(box_.listener);
      box_.listener.reset();
    }
  }
  const bool told = running_;
  running_ = false;
  pending_.store(0);
  tls_.reset();  // without the farewell that would make an answer that was cut off look whole
  shut();
  if (told && listener) listener->on_close();
}

void Connection::close() {
  contain("a close", [this] { shut(); });
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
  std::string().swap(input_);
  std::string().swap(output_);
  sent_ = 0;
  set_active(false);
  {
    std::lock_guard lock(mutex_);
    box_.gone = true;
  }
  if (tls_ != nullptr && !discarding_) tls_->close();
  tls_.reset();
  SysError ignored;
  socket_.close(ignored);
  set_closed();
}

// Whether bytes have come that are not read yet.
bool Connection::has_input() {
  SysError error;
  return socket_.available(error) > 0 && !error;
}

// A request that has not arrived whole would only be refused later, and a slow client would hold up the end.
void Connection::drain() {
  contain("a drain", [this] {
    if (!active_)
      shut();
    else if (parser_)
      answer_fault(503, "This server is shutting down.");
  });
}

void Connection::on_deadline(Wait passed) {
  contain("a time-out", [&] { end_wait(passed); });
}

void Connection::end_wait(Wait passed) {
  switch (passed) {
    case Wait::first_head:
    case Wait::head:
      if (handshaking_) {
        log::info("http", "a TLS handshake did not end within header_timeout", {{"remote", remote_}});
        return shut();
      }
      answer_fault(408, "The head of the request did not arrive within server.header_timeout.");
      break;
    case Wait::body:
      answer_fault(408, "The body of the request did not arrive within server.body_timeout.");
      break;
    case Wait::write:
      log::info("http", "a client took no bytes for write_timeout and is disconnected",
                {{"remote", remote_}, {"unsent_bytes", pending()}});
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

void Connection::set_closed() {
  if (!std::exchange(open_, false)) return;
  thread_->open().fetch_sub(1);
  thread_->shared().open.fetch_sub(1);
}

void Connection::set_active(bool active) {
  if (active == active_) return;
  active_ = active;
  if (active)
    thread_->shared().add_active();
  else
    thread_->shared().remove_active();
}

// ---- The answering side ----

// Has `add` append to the answer of exchange `id`; it returns false to leave everything as it was. Whoever answers is
// no connection's owner and may be an engine: where memory is short, the connection ends instead of the caller.
template <class Add>
void Connection::append(std::uint64_t id, Add add) {
  std::shared_ptr<Connection> given_up;
  {
    std::lock_guard lock(mutex_);
    if (!open_for(id)) return;
    const std::size_t before = box_.bytes.size();
    try {
      if (!add()) return;
      if (box_.behind) given_up = count_unsent();
    } catch (const std::exception& fault) {
      report_fault("an answer", fault.what());
      box_.bytes.resize(before);
      box_.cut = true;
    }
    const std::size_t added = box_.bytes.size() - before;
    const std::size_t pending = pending_.fetch_add(added) + added;
    if (!box_.finished && pending > Exchange::kHighWater) backlog_.store(true);
    if (!box_.finished && pending > Exchange::kMaxBacklog) box_.cut = true;
  }
  if (given_up) given_up->give_up();
  schedule();
}

void Connection::respond(std::uint64_t id, const Response& response) {
  append(id, [&] {
    if (box_.begun) return false;
    box_.begun = true;
    box_.form.close |= thread_->shared().close_after_answer.load(std::memory_order_relaxed);
    append_response(box_.bytes, response, box_.form);
    box_.finished = true;
    return true;
  });
}

void Connection::begin_stream(std::uint64_t id, int status, std::string_view content_type, const Headers& headers) {
  append(id, [&] {
    if (box_.begun) return false;
    box_.begun = true;
    box_.form.close |= !box_.form.http_1_1 || thread_->shared().close_after_answer.load(std::memory_order_relaxed);
    append_stream_head(box_.bytes, status, content_type, headers, box_.form);
    return true;
  });
}

void Connection::write(std::uint64_t id, std::string_view chunk) {
  if (chunk.empty()) return;  // an empty chunk would end the body
  append(id, [&] {
    if (!box_.begun || box_.form.head_only) return false;
    if (box_.form.http_1_1)
      append_chunk(box_.bytes, chunk);
    else
      box_.bytes += chunk;
    return true;
  });
}

void Connection::end_stream(std::uint64_t id) {
  append(id, [&] {
    if (!box_.begun) return false;
    if (box_.form.http_1_1 && !box_.form.head_only) box_.bytes += kLastChunk;
    box_.finished = true;
    return true;
  });
}

// Called from a destructor.
void Connection::abandon(std::uint64_t id, const Request& request) noexcept {
  try {
    bool begun = false;
    {
      std::lock_guard lock(mutex_);
      if (!open_for(id)) return;
      begun = box_.begun;
    }
    if (begun)
      cut(id);
    else
      respond(id, thread_->shared().error_page(request, 500, "The server failed to answer the request."));
  } catch (const std::exception& fault) {
    report_fault("an error page", fault.what());
    cut(id);
  }
}

// Ends the answer of exchange `id` where it is.
void Connection::cut(std::uint64_t id) {
  {
    std::lock_guard lock(mutex_);
    if (!open_for(id)) return;
    box_.cut = true;
  }
  schedule();
}

// Under the outbox's mutex. Returns the connection to give up, once the mutex is released.
std::shared_ptr<Connection> Connection::count_unsent() {
  return thread_->shared().slow_readers.hold(*this, box_.behind ? box_.bytes.size() + box_.sending : 0);
}

// From any thread: ends an answer that its client does not read fast enough.
void Connection::give_up() noexcept {
  {
    std::lock_guard lock(mutex_);
    if (!box_.behind) return;  // it has caught up by now
    box_.cut = true;
    box_.behind = false;
    std::string().swap(box_.bytes);
  }
  schedule();
  try {
    log::warn("http", "answers that wait for slow clients have reached max_unsent: the largest is cut off",
              {{"max_unsent_bytes", thread_->shared().options.max_unsent_bytes}});
  } catch (const std::exception&) {  // for want of memory; it is cut off all the same
  }
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

}  // namespace xgen::http
