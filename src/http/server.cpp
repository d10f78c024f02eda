// Server: listens, accepts, and gives each connection to the thread that has the fewest.
#include "http/server.h"

#include <sys/resource.h>

#include <algorithm>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <exception>
#include <utility>

#include "base/log.h"
#include "http/connection.h"
#include "http/io_thread.h"

namespace xgen::http {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using Clock = std::chrono::steady_clock;
using SysError = boost::system::error_code;
using std::chrono::milliseconds;

// Connections beyond max_connections that are told so before they are closed; more are closed without a word. As many
// again may come in a burst, before those that make room for them are closed.
constexpr std::size_t kMaxRefusals = 256;
// Open files that are not connections: model files while they are mapped, the log, event queues, the listener.
constexpr std::size_t kOtherFiles = 64;
constexpr std::chrono::minutes kWarningPause{1};

class BeastServer final : public Server {
 public:
  BeastServer(std::shared_ptr<ServerState> shared, std::vector<std::shared_ptr<IoThread>> threads)
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
    if (error == asio::error::access_denied && options.port < 1024)
      hint = " (ports below 1024 are for root and for programs with the capability CAP_NET_BIND_SERVICE)";
    return make_error(ErrorCode::unavailable, "cannot listen on " + where + ": " + error.message() + hint, "port");
  }

  std::uint16_t port() const override { return port_; }

  void start() override {
    accept();
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
  bool moves() override {
    bool all = true;
    for (const auto& thread : threads_) all = thread->moves() && all;
    return all;
  }
  std::vector<std::shared_ptr<IoThread>> threads() const override { return threads_; }

 private:
  void stop_accepting() {
    asio::post(threads_[0]->context(), [this] {
      SysError ignored;
      acceptor_.close(ignored);
    });
  }

  // A server that does not accept any more would look alive and be dead.
  void accept() {
    asio::co_spawn(threads_[0]->context(), accept_loop(), [this](const std::exception_ptr& fault) {
      if (!fault || !acceptor_.is_open()) return;
      report_fault("the acceptor", "it begins anew");
      accept();
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
      try {
        adopt(thread, std::move(socket));
      } catch (const std::exception& fault) {
        report_fault("a new connection", fault.what());
      }
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
    const std::size_t margin = std::max<std::size_t>(1, std::min(kMaxRefusals, limit / 2));
    bool room = true;
    if (open >= limit) {
      room = make_room();
      // The threads close what make_room() chose a moment later: a burst may let in more than it closes. That goes now,
      // as do those that were refused and still linger, which would leave no room behind by themselves.
      if (open > limit) room = make_room() && room;
      warn_of_full_house(room ? "those that wait longest for their clients are closed" : "new ones are refused");
    }
    if (open >= limit + (room ? 2 * margin : margin)) {
      close_oldest(Wait::linger);  // those that were refused must not keep out who comes later
      return;
    }
    const bool refuse = !room;
    auto connection = std::make_shared<Connection>(thread, std::move(socket));
    asio::post(thread->context(), [connection = std::move(connection), thread = thread.get(), refuse] {
      IoThread::Turn turn(*thread);
      if (refuse)
        connection->refuse();
      else
        connection->start();
    });
  }

  // A newcomer may be about to ask for something; a connection that waits for its client's next request, that has been
  // answered for good, or that waits for its first request has least to lose, and one whose body has come in part most.
  // False if all are being answered.
  bool make_room() {
    for (const Wait wait : {Wait::idle, Wait::linger, Wait::first_head, Wait::head, Wait::body})
      if (close_oldest(wait)) return true;
    return false;
  }

  bool close_oldest(Wait wait) {
    const auto oldest = std::min_element(threads_.begin(), threads_.end(), [&](const auto& a, const auto& b) {
      return a->oldest(wait) < b->oldest(wait);
    });
    if ((*oldest)->oldest(wait) == Clock::time_point::max()) return false;
    (*oldest)->close_oldest(wait);
    return true;
  }

  void warn_of_full_house(const std::string& consequence) {
    const auto now = Clock::now();
    if (now < next_warning_) return;
    next_warning_ = now + kWarningPause;
    log::warn("http", "as many connections as max_connections allows: " + consequence,
              {{"max_connections", shared_->options.max_connections}});
  }

  std::shared_ptr<ServerState> shared_;
  std::vector<std::shared_ptr<IoThread>> threads_;
  Clock::time_point next_warning_{};
  tcp::acceptor acceptor_;
  std::uint16_t port_ = 0;
};

// Raises the soft limit of open files to the hard one, and lowers max_connections where even that is too little: a
// server without descriptors can neither accept nor refuse.
void fit_into_open_files(ServerOptions& options) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  if (limit.rlim_cur < limit.rlim_max) {
    const rlim_t before = std::exchange(limit.rlim_cur, limit.rlim_max);
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) limit.rlim_cur = before;
  }
  const auto files = static_cast<std::size_t>(limit.rlim_cur);
  const std::size_t fitting = std::max<std::size_t>(1, files - std::min(2 * kMaxRefusals + kOtherFiles, files / 2));
  if (options.max_connections <= fitting) return;
  log::warn("http", "max_connections is lowered to what the limit of open files allows",
            {{"max_connections", options.max_connections}, {"lowered_to", fitting}, {"open_file_limit", files}});
  options.max_connections = fitting;
}

}  // namespace

std::string_view Request::header(std::string_view name) const { return find_header(headers, name); }

Result<std::unique_ptr<Server>> Server::bind(ServerOptions options, Handler handler, ErrorPage error_page,
                                             HeadCheck head_check) {
  fit_into_open_files(options);
  auto shared = std::make_shared<ServerState>(std::move(options));
  shared->handler = std::move(handler);
  shared->error_page = std::move(error_page);
  shared->head_check = std::move(head_check);
  std::vector<std::shared_ptr<IoThread>> threads;
  for (int i = 0; i < std::max(1, shared->options.threads); ++i) threads.push_back(std::make_shared<IoThread>(shared));
  auto server = std::make_unique<BeastServer>(shared, std::move(threads));
  if (Status status = server->listen(); !status.ok()) return std::move(status).error();
  return std::unique_ptr<Server>(std::move(server));
}

}  // namespace xgen::http
