#include "http/response_writer.h"

#include <charconv>
#include <ctime>

namespace xgen::http {
namespace {

// "Sun, 06 Nov 1994 08:49:37 GMT", made once a second per thread.
std::string_view date() {
  thread_local std::time_t made = 0;
  thread_local char text[40];
  thread_local std::size_t size = 0;
  timespec now{};
  clock_gettime(CLOCK_REALTIME_COARSE, &now);
  if (now.tv_sec != made) {
    std::tm utc{};
    gmtime_r(&now.tv_sec, &utc);
    size = std::strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &utc);
    made = now.tv_sec;
  }
  return {text, size};
}

void append_number(std::string& out, std::size_t value, int base = 10) {
  char text[24];
  const auto end = std::to_chars(text, text + sizeof(text), value, base).ptr;
  out.append(text, static_cast<std::size_t>(end - text));
}

// Header values come from our own code, yet may hold what a caller sent: a line break must not make a new header.
void append_value(std::string& out, std::string_view value) {
  for (const char c : value) out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
}

void append_head(std::string& out, int status, std::string_view content_type, const Headers& headers, AnswerForm form) {
  out += "HTTP/1.1 ";
  append_number(out, static_cast<std::size_t>(status));
  out += ' ';
  out += reason_phrase(status);
  out += "\r\nDate: ";
  out += date();
  if (!content_type.empty()) {
    out += "\r\nContent-Type: ";
    append_value(out, content_type);
  }
  for (const auto& [name, value] : headers) {
    out += "\r\n";
    append_value(out, name);
    out += ": ";
    append_value(out, value);
  }
  if (form.close)
    out += "\r\nConnection: close";
  else if (!form.http_1_1)
    out += "\r\nConnection: keep-alive";
}

}  // namespace

std::string_view reason_phrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 204:
      return "No Content";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 499:
      return "Client Closed Request";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return status < 400 ? "OK" : "Error";
  }
}

void append_response(std::string& out, const Response& response, AnswerForm form) {
  out.reserve(out.size() + response.body.size() + 256);
  append_head(out, response.status, response.content_type, response.headers, form);
  if (response.status != 204) {  // which has no body, and must not say so (RFC 9110 8.6)
    out += "\r\nContent-Length: ";
    append_number(out, response.body.size());
  }
  out += "\r\n\r\n";
  if (!form.head_only) out += response.body;
}

void append_stream_head(std::string& out, int status, std::string_view content_type, const Headers& headers,
                        AnswerForm form) {
  append_head(out, status, content_type, headers, form);
  if (form.http_1_1) out += "\r\nTransfer-Encoding: chunked";
  out += "\r\n\r\n";
}

void append_chunk(std::string& out, std::string_view data) {
  append_number(out, data.size(), 16);
  out += "\r\n";
  out += data;
  out += "\r\n";
}

}  // namespace xgen::http
