// Cors: which web pages of other origins a browser lets read the answers (fetch.spec.whatwg.org, "CORS protocol").
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "http/server.h"

namespace xgen::server {

// Never allows credentials that a browser would send by itself: whoever has a key sends it as a header.
class Cors {
 public:
  // Origins as browsers send them ("https://app.example.com"); "*" is every one; none: browsers are told nothing.
  explicit Cors(std::vector<std::string> origins) : origins_(std::move(origins)) {}

  bool on() const { return !origins_.empty(); }
  // Of every answer to `request`.
  http::Headers headers(const http::Request& request) const;
  // Whether `request` is a browser's question before a request of its page.
  bool is_preflight(const http::Request& request) const;
  // The answer to it. `methods`: those of the path, "GET, HEAD".
  http::Response preflight(const http::Request& request, const std::string& methods) const;

 private:
  // What Access-Control-Allow-Origin says; empty: nothing.
  std::string_view allowed(std::string_view origin) const;
  bool for_all() const;

  std::vector<std::string> origins_;
};

}  // namespace xgen::server
