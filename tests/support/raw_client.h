// RawClient: a blocking TCP client that sends exactly the bytes it is given and reads HTTP/1.1 answers.
#pragma once

#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace xgen::scripted {

struct Answer {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // without chunk framing
  bool complete = false;                       // the whole body came
};

class RawClient {
 public:
  // `receive_buffer` > 0: so many bytes only, for a client that reads slowly.
  explicit RawClient(std::uint16_t port, int receive_buffer = 0) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    if (receive_buffer > 0) ::setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = ::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
  }
  virtual ~RawClient() { close(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connected() const { return connected_; }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  std::uint16_t local_port() const {
    sockaddr_in address{};
    socklen_t size = sizeof(address);
    ::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &size);
    return ntohs(address.sin_port);
  }
  // Whether something has come that is not read yet; waits for it.
  bool has_unread(std::chrono::milliseconds wait = std::chrono::seconds(10)) const { return readable(wait); }
  void shut_writing() { ::shutdown(fd_, SHUT_WR); }

  // False if the server closed before it took everything.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = write_some(bytes);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(n));
    }
    return true;
  }
  bool post(std::string_view path, std::string_view body) {
    return send("POST " + std::string(path) + " HTTP/1.1\r\nHost: test\r\nContent-Length: " +
                std::to_string(body.size()) + "\r\n\r\n" + std::string(body));
  }
  bool get(std::string_view path) { return send("GET " + std::string(path) + " HTTP/1.1\r\nHost: test\r\n\r\n"); }

  // Reads more; false at the end of the connection or after `wait`.
  bool read_some(std::chrono::milliseconds wait = std::chrono::seconds(10)) {
    timed_out_ = !readable(wait);
    if (timed_out_) return false;
    char buffer[65536];
    const ssize_t n = receive(buffer, sizeof(buffer));
    if (n <= 0) return false;
    input.append(buffer, static_cast<std::size_t>(n));
    return true;
  }
  bool read_until(std::string_view text) {
    while (input.find(text) == std::string::npos)
      if (!read_some()) return false;
    return true;
  }
  // Whether the server ends the connection within `wait` (what it sends before is kept in `input`).
  bool closed_within(std::chrono::milliseconds wait) {
    const auto end = std::chrono::steady_clock::now() + wait;
    for (;;) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
      if (left.count() <= 0) return false;
      if (!read_some(left)) return !timed_out_;
    }
  }

  // The next answer on the connection; status 0 if none came. Interim answers (100) are returned as answers.
  Answer read_answer(bool head_only = false) {
    Answer answer;
    if (!read_until("\r\n\r\n")) return answer;
    const std::size_t head_end = input.find("\r\n\r\n");
    const std::string head = input.substr(0, head_end + 2);
    input.erase(0, head_end + 4);
    answer.status = std::atoi(head.c_str() + std::min<std::size_t>(head.size(), 9));
    for (std::size_t at = head.find("\r\n") + 2; at < head.size();) {
      const std::size_t line_end = head.find("\r\n", at);
      const std::size_t colon = head.find(':', at);
      if (colon < line_end) {
        std::string name = head.substr(at, colon - at);
        std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
        answer.headers[name] = head.substr(colon + 2, line_end - colon - 2);
      }
      at = line_end + 2;
    }
    answer.complete = head_only || answer.status == 100 || answer.status == 204 || read_body(answer);
    return answer;
  }

  std::string input;  // received, not consumed

 protected:
  int fd() const { return fd_; }
  virtual bool readable(std::chrono::milliseconds wait) const {
    pollfd poll_fd{fd_, POLLIN, 0};
    return ::poll(&poll_fd, 1, static_cast<int>(wait.count())) == 1;
  }
  virtual ssize_t receive(char* data, std::size_t size) { return ::recv(fd_, data, size, 0); }
  virtual ssize_t write_some(std::string_view bytes) { return ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }

 private:
  bool read_body(Answer& answer) {
    if (answer.headers.contains("transfer-encoding")) {
      for (;;) {
        if (!read_until("\r\n")) return false;
        const std::size_t size = std::strtoul(input.c_str(), nullptr, 16);
        input.erase(0, input.find("\r\n") + 2);
        while (input.size() < size + 2)
          if (!read_some()) return false;
        answer.body.append(input, 0, size);
        input.erase(0, size + 2);
        if (size == 0) return true;
      }
    }
    const auto length = answer.headers.find("content-length");
    const std::size_t size =
        length == answer.headers.end() ? std::string::npos : std::strtoul(length->second.c_str(), nullptr, 10);
    while (input.size() < size)
      if (!read_some()) break;
    const bool complete = size == std::string::npos ? !timed_out_ : input.size() >= size;
    answer.body = input.substr(0, size);
    input.erase(0, answer.body.size());
    return complete;
  }

  int fd_;
  bool connected_ = false;
  bool timed_out_ = false;
};

}  // namespace xgen::scripted
