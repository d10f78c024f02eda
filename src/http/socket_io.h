// Reading and writing of non-blocking sockets, and what it comes to; a TLS session has the same two calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace xgen::http {

// What a non-blocking read, write or handshake came to.
struct IoResult {
  enum class Kind : std::uint8_t { done, want_read, want_write, closed, failed } kind = Kind::done;
  std::size_t bytes = 0;
  std::string reason;  // of failed
};

IoResult read_socket(int socket, char* data, std::size_t size);
IoResult write_socket(int socket, std::string_view data);

}  // namespace xgen::http
