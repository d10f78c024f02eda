// RawServer: a TCP server for tests that sends exactly the bytes its script says, and cuts connections when it says so.
#pragma once

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

namespace xgen::scripted {

struct RawRequest {
  std::string line;                            // "POST /v1 HTTP/1.1"; empty: the client has closed
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
};

// One accepted connection, on a thread of its own.
class RawConnection {
 public:
  RawConnection(int fd, int which) : number(which), fd_(fd) {}
  virtual ~RawConnection() { close(); }
  RawConnection(const RawConnection&) = delete;
  RawConnection& operator=(const RawConnection&) = delete;

  const int number;   // 0 for the server's first connection
  std::string input;  // received, not consumed

  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = write_some(bytes);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(n));
    }
    return true;
  }
  // As one chunk of a chunked body.
  bool send_chunk(std::string_view data) {
    char size[20];
    std::snprintf(size, sizeof(size), "%zx\r\n", data.size());
    return send(size + std::string(data) + "\r\n");
  }
  bool answer(std::string_view body, std::string_view status = "200 OK", std::string_view headers = {}) {
    return send("HTTP/1.1 " + std::string(status) + "\r\n" + std::string(headers) +
                "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + std::string(body));
  }

  // More input; false at the end of the connection or after `wait`.
  bool read_some(std::chrono::milliseconds wait = std::chrono::seconds(10)) {
    if (!readable(wait)) return false;
    char buffer[65536];
    const ssize_t n = receive(buffer, sizeof(buffer));
    if (n <= 0) return false;
    input.append(buffer, static_cast<std::size_t>(n));
    return true;
  }
  RawRequest read_request() {
    RawRequest request;
    std::size_t end = 0;
    while ((end = input.find("\r\n\r\n")) == std::string::npos)
      if (!read_some()) return request;
    const std::string head = input.substr(0, end + 2);
    input.erase(0, end + 4);
    for (std::size_t at = head.find("\r\n") + 2; at < head.size();) {
      const std::size_t line_end = head.find("\r\n", at);
      const std::size_t colon = head.find(':', at);
      std::string name = head.substr(at, colon - at);
      std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
      request.headers[name] = head.substr(colon + 2, line_end - colon - 2);
      at = line_end + 2;
    }
    const auto length = request.headers.find("content-length");
    const std::size_t size = length == request.headers.end() ? 0 : std::strtoul(length->second.c_str(), nullptr, 10);
    while (input.size() < size)
      if (!read_some()) return request;
    request.body = input.substr(0, size);
    input.erase(0, size);
    request.line = head.substr(0, head.find("\r\n"));
    return request;
  }
  // Whether the client closes within `wait`; what it sends before is dropped.
  bool closed_within(std::chrono::milliseconds wait) {
    const auto end = std::chrono::steady_clock::now() + wait;
    for (;;) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
      if (left.count() <= 0 || !readable(left)) return false;
      char buffer[65536];
      if (receive(buffer, sizeof(buffer)) <= 0) return true;
    }
  }

  void close() {
    std::lock_guard lock(mutex_);
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  // Closes with a reset instead of an orderly end.
  void reset() {
    const linger now{1, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    close();
  }
  // From any thread.
  void shut() {
    std::lock_guard lock(mutex_);
    ::shutdown(fd_, SHUT_RDWR);
  }
  int fd() const { return fd_; }

 protected:
  virtual bool readable(std::chrono::milliseconds wait) {
    pollfd poll_fd{fd_, POLLIN, 0};
    return fd_ >= 0 && ::poll(&poll_fd, 1, static_cast<int>(wait.count())) > 0;
  }
  virtual ssize_t receive(char* data, std::size_t size) { return ::recv(fd_, data, size, 0); }
  virtual ssize_t write_some(std::string_view bytes) { return ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }

 private:
  std::mutex mutex_;  // of closing
  int fd_;
};

class RawServer {
 public:
  using Script = std::function<void(RawConnection&)>;
  using Wrap = std::function<std::unique_ptr<RawConnection>(int fd, int number)>;

  // Runs `script` for each connection, and closes it at the script's end. `wrap` makes another kind of connection.
  explicit RawServer(Script script, Wrap wrap = {}) : script_(std::move(script)), wrap_(std::move(wrap)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM, 0);
    const int on = 1;
    ::setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ::bind(listener_, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
    ::listen(listener_, 128);
    socklen_t size = sizeof(address);
    ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { accept_loop(); });
  }
  ~RawServer() {
    stopping_.store(true);
    ::shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    ::close(listener_);
    {
      std::lock_guard lock(mutex_);
      for (auto& each : connections_)
        if (each.connection) each.connection->shut();
    }
    for (auto& each : connections_) each.thread.join();
  }
  RawServer(const RawServer&) = delete;
  RawServer& operator=(const RawServer&) = delete;

  std::uint16_t port() const { return port_; }
  std::string url(std::string_view path = "/") const {
    return "http://127.0.0.1:" + std::to_string(port_) + std::string(path);
  }
  int accepted() const { return accepted_.load(); }

 private:
  struct Running {
    std::shared_ptr<RawConnection> connection;
    std::thread thread;
  };

  void accept_loop() {
    for (;;) {
      const int fd = ::accept(listener_, nullptr, nullptr);
      if (fd < 0 || stopping_.load()) {
        if (fd >= 0) ::close(fd);
        return;
      }
      const int number = accepted_.fetch_add(1);
      std::lock_guard lock(mutex_);
      Running& running = connections_.emplace_back();
      running.thread = std::thread([this, &running, fd, number] {
        std::shared_ptr<RawConnection> connection =
            wrap_ ? wrap_(fd, number) : std::make_unique<RawConnection>(fd, number);
        {
          std::lock_guard inner(mutex_);
          running.connection = connection;
        }
        if (stopping_.load()) connection->shut();
        script_(*connection);
        std::lock_guard inner(mutex_);
        running.connection.reset();
        connection->close();
      });
    }
  }

  Script script_;
  Wrap wrap_;
  int listener_ = -1;
  std::uint16_t port_ = 0;
  std::atomic<bool> stopping_{false};
  std::atomic<int> accepted_{0};
  std::mutex mutex_;
  std::list<Running> connections_;
  std::thread acceptor_;
};

// A script that answers each request of a connection.
inline RawServer::Script each_request(std::function<void(RawConnection&, const RawRequest&)> answer) {
  return [answer](RawConnection& connection) {
    for (;;) {
      const RawRequest request = connection.read_request();
      if (request.line.empty()) return;
      answer(connection, request);
    }
  };
}

}  // namespace xgen::scripted
