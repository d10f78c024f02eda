// Connection: one client's socket: it reads requests, hands them to the handler as exchanges, and sends their answers.
// A header of this room alone: it includes Boost.
#pragma once

#include <atomic>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "http/io_thread.h"
#include "http/request_parser.h"
#include "http/response_writer.h"
#include "http/server.h"
#include "http/socket_io.h"

namespace xgen::http {

class HttpExchange;
class TlsSession;

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::shared_ptr<IoThread> thread, boost::asio::ip::tcp::socket socket);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // On the connection's thread.
  void start();
  void refuse();
  void serve();
  void on_deadline(Wait passed);
  void close();
  bool has_input();
  void drain();

  // From any thread, for the exchange `id`; calls of exchanges that are over have no effect.
  void respond(std::uint64_t id, const Response& response);
  void begin_stream(std::uint64_t id, int status, std::string_view content_type, const Headers& headers);
  void write(std::uint64_t id, std::string_view chunk);
  void end_stream(std::uint64_t id);
  void abandon(std::uint64_t id, const Request& request) noexcept;
  void cut(std::uint64_t id);
  void set_listener(std::uint64_t id, std::shared_ptr<ExchangeListener> listener);
  void wake();
  bool exchange_closed(std::uint64_t id);
  ServerState& shared() const { return thread_->shared(); }
  std::size_t pending() const { return pending_.load(); }

 private:
  friend class IoThread;

  template <class Work>
  void contain(std::string_view where, Work work) noexcept;
  template <class Add>
  void append(std::uint64_t id, Add add);
  void begin_reading();
  boost::asio::awaitable<void> read_loop();
  void serve_outbox();
  void end_wait(Wait passed);
  void shut();
  bool on_readable();
  IoResult receive(char* data, std::size_t size);
  IoResult send(std::string_view data);
  bool shake_hands();
  void take(std::string_view bytes);
  void process_input();
  std::size_t parse(std::string_view bytes);
  void dispatch();
  void answer_fault(int status, std::string_view message);
  void end_with(const Response& response);
  bool may_send_body();
  bool count_body();
  void flush();
  void complete();
  void linger();
  void gone();
  void set_active(bool active);
  void set_closed();
  std::shared_ptr<Connection> count_unsent();
  void give_up() noexcept;
  void wait(Wait kind) { thread_->begin_wait(*this, kind); }
  void schedule();
  // Under the outbox's mutex: whether exchange `id` may still add to its answer.
  bool open_for(std::uint64_t id) const { return box_.id == id && !box_.gone && !box_.finished && !box_.cut; }

  std::shared_ptr<IoThread> thread_;  // first: the io_context must outlive the socket
  boost::asio::ip::tcp::socket socket_;

  // Of the connection's thread only.
  std::unique_ptr<TlsSession> tls_;  // null: the bytes go as they are
  std::string remote_;
  std::string certificate_;  // whose the client has shown
  std::string input_;        // received, not consumed
  std::string output_;       // being sent
  std::size_t sent_ = 0;
  std::shared_ptr<HttpExchange> incoming_;  // the request being read
  std::unique_ptr<RequestParser> parser_;
  bool open_ = true;      // counted in ServerState::open
  bool running_ = false;  // an exchange is being answered
  bool active_ = false;   // a request is being read or answered
  bool processing_ = false;
  bool reading_ = false;  // a read is pending
  bool write_blocked_ = false;
  bool handshaking_ = false;
  bool greeted_ = false;            // the first byte of a handshake has come
  bool read_awaits_write_ = false;  // TLS must send before it reads on
  bool head_checked_ = false;       // of the request being read, whose body is still to come
  bool peer_done_ = false;          // the client has sent its last byte
  bool last_answer_ = false;        // nothing more is read after the bytes in output_
  bool discarding_ = false;         // lingering: what comes is dropped
  Wait wait_ = Wait::none;
  std::chrono::steady_clock::time_point wait_began_{};
  IoThread::Hook wait_hook_;
  IoThread::Hook thread_hook_;

  // Under the inbox's mutex of the thread.
  IoThread::InboxHook inbox_hook_;
  std::shared_ptr<Connection> in_inbox_;  // itself, while it is there

  // Shared with the threads that answer.
  std::atomic<bool> scheduled_{false};
  std::atomic<bool> wake_{false};
  std::atomic<bool> backlog_{false};  // more than kHighWater bytes were pending: on_wake() is due when they are sent
  std::atomic<std::size_t> pending_{0};
  std::mutex mutex_;
  struct Outbox {
    std::uint64_t id = 0;     // of the exchange being answered
    bool begun = false;       // its head is written
    bool finished = true;     // its last byte is written
    bool cut = false;         // it is not sent to its end
    bool gone = false;        // the client is
    bool behind = false;      // the socket takes no more for now: what is held counts in ServerState::slow_readers
    std::size_t sending = 0;  // bytes in output_
    AnswerForm form;
    std::string bytes;
    std::shared_ptr<ExchangeListener> listener;
  } box_;
};

}  // namespace xgen::http
