// An HTTP/1.1 server that knows nothing of models: limits, time-outs, keep-alive, bodies and streamed answers.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "http/headers.h"

namespace xgen::http {

struct Request {
  std::string method;  // "GET"
  std::string path;    // undecoded, without the query: "/v1/models/a%2Fb"
  std::string query;   // without '?'
  Headers headers;     // as sent
  std::string body;
  std::string remote;                             // "127.0.0.1:4711", "[::1]:4711"
  std::string certificate;                        // "CN=…": whose the client has shown (TLS); empty: none
  std::chrono::steady_clock::time_point arrival;  // of the whole head; before: not yet
  // First value of a header, case-insensitive; empty if absent.
  std::string_view header(std::string_view name) const;
};

struct Response {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  Headers headers;
};

// What a running exchange tells its owner, on the connection's server thread. Neither function may block.
class ExchangeListener {
 public:
  virtual ~ExchangeListener() = default;
  // Soon after Exchange::wake() (many calls, one run); and when a backlog above kHighWater has been sent.
  virtual void on_wake() {}
  // At most once: the client went away, or a write timed out, before the answer was complete.
  virtual void on_close() {}
};

// One request and its answer. The answer side is thread-safe: calls may come from any thread and return at once;
// bytes are sent in the order of the calls. Exactly one of respond() or begin_stream()…end_stream() is used. If the
// last reference goes without an answer, the client gets a 500; a stream left open is cut off.
class Exchange {
 public:
  // A writer should hold back (or merge) what it has while more bytes than this are pending: on_wake() tells when to go
  // on. A stream whose backlog passes kMaxBacklog is given up as if its client had gone.
  static constexpr std::size_t kHighWater = 64 << 10;
  static constexpr std::size_t kMaxBacklog = 32 << 20;

  virtual ~Exchange() = default;
  // The handler's own: it may move parts out, to free what a long answer does not need.
  virtual Request& request() = 0;

  virtual void respond(Response response) = 0;

  // A streamed (chunked) answer. Small writes that are waiting go out together in one system call.
  virtual void begin_stream(int status, std::string content_type, Headers headers) = 0;
  virtual void write(std::string_view chunk) = 0;
  virtual void end_stream() = 0;
  // Bytes accepted by write() that the socket has not taken yet.
  virtual std::size_t pending_bytes() const = 0;

  // The server drops its reference when the answer is complete or the client is gone. If the client is gone already,
  // on_close() runs at once, on the calling thread.
  virtual void set_listener(std::shared_ptr<ExchangeListener> listener) = 0;
  // Asks for one on_wake() run. Cheap: calls between two runs cost one atomic operation.
  virtual void wake() = 0;
  virtual bool closed() const = 0;
};

class ServerTls;

struct ServerOptions {
  std::string host = "0.0.0.0";
  std::uint16_t port = 8000;       // 0 = any free port, see port()
  std::shared_ptr<ServerTls> tls;  // null: plain HTTP
  int threads = 1;
  // For one more the connection that has been idle longest is closed, else one whose first head is still arriving, a
  // later one's, or a body; if none is, the newcomer is answered 503 and closed (without an answer, where there are
  // many such).
  std::size_t max_connections = 16384;
  std::size_t max_header_bytes = 32 << 10;  // 431
  std::size_t max_body_bytes = 16 << 20;    // 413, before the body is read where Content-Length says so
  // Of all bodies, from their arrival until their exchanges end, what each has beyond its first 64 KiB: 503. A single
  // largest body always fits.
  std::size_t max_total_body_bytes = 256 << 20;
  // Of all answers whose clients read too slowly: the largest is cut off. Beside the backlog of each, see Exchange.
  std::size_t max_unsent_bytes = 256 << 20;
  // First byte of a request to the end of its headers: 408. A TLS handshake has as long: closed.
  std::chrono::milliseconds header_timeout{10'000};
  std::chrono::milliseconds body_timeout{60'000};   // 408
  std::chrono::milliseconds write_timeout{30'000};  // no progress while bytes are pending: closed
  std::chrono::milliseconds idle_timeout{75'000};   // between requests, and before the first: closed
};

// Runs on a server thread; must not block. A fault in framing never reaches it.
using Handler = std::function<void(std::shared_ptr<Exchange>)>;
// Makes the answer for faults the server finds by itself: 400, 408, 413, 431, 500, 503, 505. Any thread. `request`
// holds what was read of it, which may be nothing.
using ErrorPage = std::function<Response(const Request& request, int status, std::string_view message)>;
// Asked, on a server thread, once the head of a request has come and its body has not, before the client is told to go
// on. An answer refuses the request, and the connection ends with it. A request that comes whole is the handler's
// alone.
using HeadCheck = std::function<std::optional<Response>(const Request& head)>;

class IoThread;

class Server {
 public:
  // Binds and listens; nothing is accepted before start(). Raises the soft limit of open files to the hard one, and
  // lowers max_connections (with a line in the log) where that is too little. Errors: invalid_argument or unavailable,
  // naming host, port and the reason.
  static Result<std::unique_ptr<Server>> bind(ServerOptions options, Handler handler, ErrorPage error_page,
                                              HeadCheck head_check = {});
  virtual ~Server() = default;  // stops at once
  virtual std::uint16_t port() const = 0;
  virtual void start() = 0;
  // From now on every answer carries "Connection: close" (still accepting): tells load balancers to go.
  virtual void close_connections_after_answers() = 0;
  // Stops accepting, closes idle connections, answers requests that have not arrived whole with 503; returns when all
  // running exchanges are done, or at the deadline.
  // True if none was left.
  virtual bool drain(std::chrono::milliseconds deadline) = 0;
  virtual std::size_t open_connections() const = 0;
  // Whether every thread has done since the last call what that asked of it: for one that asks from time to time.
  virtual bool moves() = 0;
  // For a Client that runs on them.
  virtual std::vector<std::shared_ptr<IoThread>> threads() const = 0;
};

}  // namespace xgen::http
