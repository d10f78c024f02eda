// The bytes of response heads and chunks.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "http/server.h"

namespace xgen::http {

std::string_view reason_phrase(int status);

// What the request decides about the form of its answer.
struct AnswerForm {
  bool http_1_1 = true;
  bool head_only = false;  // HEAD: the head as for GET, no body
  bool close = false;      // the connection ends with this answer
};

// Appends a whole answer with its Content-Length.
void append_response(std::string& out, const Response& response, AnswerForm form);
// Appends the head of a streamed answer: chunked, or (HTTP/1.0) ended by closing the connection.
void append_stream_head(std::string& out, int status, std::string_view content_type, const Headers& headers,
                        AnswerForm form);
// Appends `data` (not empty) as one chunk.
void append_chunk(std::string& out, std::string_view data);
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

}  // namespace xgen::http
