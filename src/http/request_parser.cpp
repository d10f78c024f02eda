#include "http/request_parser.h"

#include <algorithm>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/error.hpp>
#include <cstdint>
#include <limits>
#include <optional>

#include "base/units.h"

namespace xgen::http {
namespace {

namespace beast = boost::beast;
using beast::http::error;
using beast::http::field;
using Code = beast::error_code;

constexpr std::size_t kMaxHeaders = 128;
constexpr std::size_t kMaxChunkHeader = 1024;  // bytes of a chunk's extensions, and of the trailer
// Of the line of a chunk, and of the last one's with the trailer, while they have not come whole.
constexpr std::size_t kMaxUnfinished = 2 * kMaxChunkHeader + 64;
constexpr std::size_t kMaxReserve = 1 << 20;    // of a body that has only been announced
constexpr std::size_t kMaxIdleBody = 64 << 10;  // of a method for which a body means nothing (RFC 9110 9.3)

bool all_digits(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// A line that begins with a blank continues the one before it (obs-fold); RFC 9112 5.2 lets a server refuse it.
bool has_folded_line(std::string_view lines) {
  for (std::size_t i = lines.find('\n'); i != std::string_view::npos && i + 1 < lines.size();
       i = lines.find('\n', i + 1))
    if (lines[i + 1] == ' ' || lines[i + 1] == '\t') return true;
  return false;
}

bool is_control(char c) { return (static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f; }

// Whether a request's first line is well-formed: METHOD TARGET HTTP/d.d
bool names_a_version(std::string_view line) {
  constexpr std::string_view kHttp = " HTTP/";
  if (std::count(line.begin(), line.end(), ' ') != 2) return false;
  const std::size_t at = line.rfind(' ');
  const std::string_view version = line.substr(std::min(at + kHttp.size(), line.size()));
  return line.substr(at).starts_with(kHttp) && version.size() == 3 && all_digits(version.substr(0, 1)) &&
         version[1] == '.' && all_digits(version.substr(2));
}

}  // namespace

struct RequestParser::Impl final : beast::http::basic_parser<true> {
  Impl(Request& target, std::size_t most) : request(target), max_body(most) {}

  void on_request_impl(beast::http::verb, beast::string_view method, beast::string_view target, int version,
                       Code& ec) override {
    http_1_1 = version == 11;
    request.method.assign(method.data(), method.size());
    if (request.method != "POST" && request.method != "PUT" && request.method != "PATCH")
      max_body = std::min(max_body, kMaxIdleBody);
    body_limit(max_body);
    std::string_view path(target.data(), target.size());
    if (!path.starts_with('/') && !(path == "*" && request.method == "OPTIONS")) {
      // absolute-form, as sent to proxies: "http://host/path"
      const std::size_t scheme = path.find("://");
      const std::string_view name = path.substr(0, scheme);
      if (scheme == std::string_view::npos || !(beast::iequals(name, "http") || beast::iequals(name, "https"))) {
        ec = error::bad_target;
        return;
      }
      path.remove_prefix(scheme + 3);
      const std::size_t slash = std::min(path.find_first_of("/?"), path.size());
      authority = path.substr(0, slash);
      path.remove_prefix(slash);
    }
    const std::size_t question = path.find('?');
    if (question != std::string_view::npos) request.query = path.substr(question + 1);
    request.path = path.substr(0, question);
    if (request.path.empty()) request.path = "/";
  }

  void on_response_impl(int, beast::string_view, int, Code&) override {}

  void on_field_impl(field name, beast::string_view name_text, beast::string_view value, Code& ec) override {
    if (head_done) return;  // trailers: read past, never merged into the head
    const std::string_view text(value.data(), value.size());
    if (request.headers.size() == kMaxHeaders) {
      ec = error::header_limit;
      return;
    }
    switch (name) {
      case field::content_length:
        // Beast takes a list of equal numbers; a front end may take another element of it.
        if (++content_lengths > 1 || !all_digits(text)) ec = error::bad_content_length;
        break;
      case field::transfer_encoding:
        if (!http_1_1 || !beast::iequals(value, "chunked")) ec = error::bad_transfer_encoding;
        break;
      case field::host:
        if (++hosts > 1) ec = error::bad_field;
        break;
      case field::expect:
        expects_continue = beast::iequals(value, "100-continue");
        break;
      default:
        break;
    }
    if (!ec) request.headers.emplace_back(std::string(name_text.data(), name_text.size()), text);
  }

  void on_header_impl(Code& ec) override {
    head_done = true;
    // What the target names counts more than Host (RFC 9112 3.2.2), which others on the way and here decide by.
    const bool two_names =
        authority && (authority->empty() || !equal_ignoring_case(*authority, find_header(request.headers, "host")));
    if ((http_1_1 && hosts != 1) || two_names) ec = error::bad_field;
  }

  void on_body_init_impl(boost::optional<std::uint64_t> const& length, Code&) override {
    if (length) request.body.reserve(static_cast<std::size_t>(std::min<std::uint64_t>(*length, kMaxReserve)));
  }
  std::size_t on_body_impl(beast::string_view body, Code&) override {
    request.body.append(body.data(), body.size());
    return body.size();
  }
  void on_chunk_header_impl(std::uint64_t size, beast::string_view extension, Code& ec) override {
    // Beast lets everything stand in quotes, line feeds as well.
    if (extension.size() > kMaxChunkHeader || std::any_of(extension.begin(), extension.end(), is_control))
      ec = error::bad_chunk_extension;
    if (size == 0) last_chunk = extension.data() + extension.size();
  }
  std::size_t on_chunk_body_impl(std::uint64_t, beast::string_view body, Code&) override {
    request.body.append(body.data(), body.size());
    return body.size();
  }
  void on_finish_impl(Code&) override {}

  Request& request;
  std::size_t max_body;
  std::optional<std::string> authority;  // that the target names
  const char* last_chunk = nullptr;      // the end of its line, in the bytes that are being fed
  int content_lengths = 0;
  int hosts = 0;
  bool http_1_1 = true;
  bool head_done = false;
  bool expects_continue = false;
};

RequestParser::RequestParser(Request& request, std::size_t max_header_bytes, std::size_t max_body_bytes)
    : impl_(std::make_unique<Impl>(request, max_body_bytes)),
      request_(request),
      max_header_bytes_(max_header_bytes),
      max_body_bytes_(max_body_bytes) {
  impl_->header_limit(
      static_cast<std::uint32_t>(std::min<std::size_t>(max_header_bytes, std::numeric_limits<std::uint32_t>::max())));
}

RequestParser::~RequestParser() = default;

bool RequestParser::keep_alive() const { return impl_->keep_alive(); }

void RequestParser::fail(int status, std::string message) {
  state_ = State::failed;
  error_status_ = status;
  error_message_ = std::move(message);
}

std::size_t RequestParser::feed(std::string_view bytes) {
  if (state_ == State::done || state_ == State::failed || bytes.empty()) return 0;
  const std::size_t used = state_ == State::head ? feed_head(bytes) : 0;
  return state_ == State::body ? used + feed_body(bytes.substr(used)) : used;
}

std::size_t RequestParser::feed_head(std::string_view bytes) {
  Code ec;
  impl_->eager(false);  // it stops where the head ends
  const std::size_t used = impl_->put(boost::asio::const_buffer(bytes.data(), bytes.size()), ec);
  head_bytes_ += used;
  http_1_1_ = impl_->http_1_1;
  expects_continue_ = impl_->expects_continue;
  if (ec == error::need_more) ec = {};
  // Beast's own limit is that of one call, and what it has consumed is not given again.
  const std::size_t unfinished = impl_->is_header_done() ? 0 : bytes.size() - used;
  if (!ec && head_bytes_ + unfinished > max_header_bytes_) ec = error::header_limit;
  if (has_folded_line(bytes.substr(0, used)))
    fail(400, "A header line that continues the one before it is not accepted.");
  else if (ec)
    fail(ec, bytes);
  else if (impl_->is_done())
    state_ = State::done;
  else if (impl_->is_header_done())
    state_ = State::body;
  return used;
}

std::size_t RequestParser::feed_body(std::string_view bytes) {
  // At least "0 CRLF CRLF" is still to come of a chunked body; Beast asserts that it sees so much of it at a time.
  if (bytes.empty() || (impl_->chunked() && bytes.size() < 5)) return 0;
  Code ec;
  impl_->eager(true);
  const std::size_t used = impl_->put(boost::asio::const_buffer(bytes.data(), bytes.size()), ec);
  std::string_view trailer;
  if (impl_->is_done() && impl_->last_chunk != nullptr)
    trailer = {impl_->last_chunk, static_cast<std::size_t>(bytes.data() + used - impl_->last_chunk)};
  if (ec && ec != error::need_more)
    fail(ec, bytes);
  else if (trailer.size() > kMaxChunkHeader ||
           (impl_->chunked() && bytes.size() - used > kMaxUnfinished && !impl_->is_done()))
    fail(400, "A chunk header or the trailer of the request is too long.");
  else if (has_folded_line(trailer))
    fail(400, "A trailer line that continues the one before it is not accepted.");
  else if (impl_->is_done())
    state_ = State::done;
  return used;
}

void RequestParser::fail(const Code& ec, std::string_view bytes) {
  if (ec == error::header_limit) {
    fail(431, request_.headers.size() == kMaxHeaders
                  ? "The request has more than " + std::to_string(kMaxHeaders) + " headers."
                  : "The head of the request is larger than server.max_headers allows, " +
                        format_bytes(max_header_bytes_) + ".");
  } else if (ec == error::body_limit) {
    fail(413, "The body of the request is larger than " +
                  (impl_->max_body < max_body_bytes_ ? "one of the method " + request_.method + " may be, "
                                                     : "server.max_body allows, ") +
                  format_bytes(impl_->max_body) + ".");
  } else if (ec == error::bad_version && names_a_version(bytes.substr(0, bytes.find('\r')))) {
    fail(505, "Only HTTP/1.0 and HTTP/1.1 are spoken here.");
  } else if (ec == error::bad_field && impl_->head_done) {
    fail(400, "An HTTP/1.1 request needs exactly one Host header, and a target that names a host the same one.");
  } else if (!impl_->head_done && head_bytes_ == 0 && bytes.starts_with("\x16\x03")) {
    fail(400, "The client speaks TLS, and this server plain HTTP.");
  } else {
    fail(400, "Malformed HTTP request: " + ec.message() + ".");
  }
}

}  // namespace xgen::http
