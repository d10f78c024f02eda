// An HTTP/1.1 client that knows nothing of models: keep-alive pools, TLS, time-outs, streamed answers, cancellation.
// Proxies (HTTPS_PROXY, NO_PROXY) are not spoken to.
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
#include "http/url.h"

namespace xgen::http {

class Server;

struct ClientRequest {
  std::string method = "GET";
  Url url;
  Headers headers;  // beside Host, Content-Length and User-Agent, which are made unless they are here
  std::string body;
  std::string ca_file;  // PEM; empty: SSL_CERT_FILE and SSL_CERT_DIR, else where the system has its store
  // PEM. Not empty: the server must show the very certificate that comes first in it, whatever its names and its time,
  // and whoever signed it; ca_file is of no use then.
  std::string pinned_cert_file;
  std::string cert_file;  // PEM: what is shown to a server that asks for a certificate; empty: none
  std::string key_file;   // PEM, without a passphrase: the key of cert_file

  std::chrono::milliseconds connect_timeout{10'000};     // name, connection and TLS together, over all addresses
  std::chrono::milliseconds first_byte_timeout{60'000};  // from the request sent to the answer's first body byte
  std::chrono::milliseconds idle_timeout{60'000};        // without progress while sending, or between body bytes
  std::optional<std::chrono::steady_clock::time_point> deadline;  // of the whole call
  std::size_t max_head = 64 << 10;                                // bytes of the answer's head
  std::uint64_t max_body = UINT64_MAX;                            // bytes of the answer's body
  bool retry_closed = true;  // whether a kept connection that turns out to be closed is replaced
};

struct ResponseHead {
  int status = 0;
  Headers headers;
  // First value of a header, case-insensitive; empty if absent.
  std::string_view header(std::string_view name) const { return find_header(headers, name); }
};

// How a call ended.
struct CallEnd {
  // Errors: unavailable (no connection, or it ended too early), timeout, too_large (max_body), invalid_argument (the
  // request), overloaded (max_calls), internal. The message names the origin, never headers, query or bodies.
  Status status;
  // How far it came. Before `head` not one byte of an answer had arrived.
  enum class Phase : std::uint8_t { connecting, sending, waiting, head, body, done } phase = Phase::connecting;
};

// Hears one call, on the client's thread; must not block. Order: on_head, on_body…, on_end. What it throws ends the
// call with an internal error.
class CallListener {
 public:
  virtual ~CallListener() = default;
  virtual void on_head(ResponseHead head) = 0;
  virtual void on_body(std::string_view chunk) = 0;
  // Exactly once, unless the Call is destroyed before. The listener is let go of afterwards.
  virtual void on_end(CallEnd end) = 0;
};

// Owning handle of a running call: destroying it cancels the call (its connection is closed; no further callback is
// made than at most one already under way on the client's thread). After on_end it is inert. Thread-safe, and usable
// from inside callbacks.
class Call {
 public:
  virtual ~Call() = default;
  // Stops reading from the connection, so that a slow consumer holds the sender back; on_body may still bring what has
  // been read already, at most kClientReadSize bytes. A paused call has no idle_timeout.
  virtual void pause() = 0;
  virtual void resume() = 0;
  // As if it were destroyed.
  virtual void cancel() = 0;
  // Closes the connection; on_end brings this error, unless the call has ended by then.
  virtual void fail(Error error) = 0;
};
inline constexpr std::size_t kClientReadSize = 64 << 10;

struct ClientOptions {
  int threads = 1;  // of its own
  std::string user_agent = "xgen-model";
  std::size_t max_calls = 16384;                          // running at once; more end as overloaded
  std::size_t max_idle_per_origin = 1024;                 // connections kept per thread and origin
  std::chrono::milliseconds keep_idle{30'000};            // an unused connection is closed after it
  std::chrono::milliseconds max_connection_age{300'000};  // none is reused after it: names are looked up again
  std::function<Result<std::vector<std::string>>(const std::string& host)> look_up;  // for tests; may block
};

// Thread-safe. Connections are kept per scheme, host, port, address and the files of TLS. One that the server has
// closed before any byte of an answer is replaced, once, by a new one, unless retry_closed is off; nothing else is ever
// sent twice.
class Client {
 public:
  explicit Client(ClientOptions options = {});
  // On the threads of a server: a call that one of them starts stays on it, so that what it brings is passed on without
  // waking another thread. When the server goes, every call ends. Where the client goes first, the server must have
  // been started.
  Client(ClientOptions options, const Server& server);
  // Ends every call (cancelled). Not from inside a callback. A running look-up of a name is not waited for.
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  std::unique_ptr<Call> start(ClientRequest request, std::shared_ptr<CallListener> listener);

  // Runs `work` once on a client's thread, where it must not block. Destroying the Timer cancels it; `work` may be
  // under way then.
  class Timer {
   public:
    virtual ~Timer() = default;
  };
  std::unique_ptr<Timer> after(std::chrono::milliseconds delay, std::function<void()> work);

  // The addresses of a host, in getaddrinfo's order; of a literal, itself. `done` is called once, on a client's thread,
  // where it must not block; or never, if the client goes first. Errors: not_found (there is no such name, or it has no
  // address); unavailable (that could not be found out).
  using Addresses = Result<std::vector<std::string>>;
  void resolve(const std::string& host, std::function<void(Addresses)> done);

  struct Counts {
    std::uint64_t opened = 0;  // connections
    std::uint64_t reused = 0;  // calls on a kept connection
    std::uint64_t retried = 0;
    std::size_t running = 0;  // calls
    std::size_t idle = 0;     // kept connections
  };
  Counts counts() const;
  // Processor time of each of its own threads so far.
  std::vector<double> thread_seconds() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Cancels blocking calls from another thread. May serve several of them, one after another or at once.
class CancelToken {
 public:
  CancelToken();
  void cancel();  // for good
  bool cancelled() const;

 private:
  friend Status fetch(Client& client, ClientRequest request, const std::function<Status(const ResponseHead&)>& on_head,
                      const std::function<Status(std::string_view)>& on_body, const CancelToken* cancel);
  struct State;
  std::shared_ptr<State> state_;
};

// One call, on the calling thread: both functions are called here, may block (the sender is held back), and an error of
// theirs cancels the call and is returned. Other errors: those of CallEnd, and cancelled.
Status fetch(Client& client, ClientRequest request, const std::function<Status(const ResponseHead&)>& on_head,
             const std::function<Status(std::string_view)>& on_body, const CancelToken* cancel = nullptr);

}  // namespace xgen::http
