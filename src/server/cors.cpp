#include "server/cors.h"

#include <algorithm>
#include <cctype>

namespace xgen::server {
namespace {

// What scripts may read beside the body.
constexpr std::string_view kExposed =
    "x-request-id, x-xgen-model, retry-after, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, "
    "x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens";
constexpr std::string_view kMaxAge = "600";     // seconds that a browser may keep the answer to a preflight
constexpr std::size_t kMaxAskedHeaders = 1024;  // bytes of their names

bool names_headers(std::string_view list) {
  return list.size() <= kMaxAskedHeaders && std::all_of(list.begin(), list.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '-' || c == '_' || c == ',' || c == ' ';
         });
}

}  // namespace

bool Cors::for_all() const { return std::find(origins_.begin(), origins_.end(), "*") != origins_.end(); }

std::string_view Cors::allowed(std::string_view origin) const {
  if (origin.empty()) return {};
  if (for_all()) return "*";
  const auto found = std::find(origins_.begin(), origins_.end(), origin);
  return found == origins_.end() ? std::string_view() : std::string_view(*found);
}

http::Headers Cors::headers(const http::Request& request) const {
  http::Headers headers;
  if (!on()) return headers;
  // Also where no origin is named: a cache must not give such an answer to a page.
  if (!for_all()) headers.emplace_back("Vary", "Origin");
  if (const std::string_view origin = allowed(request.header("Origin")); !origin.empty()) {
    headers.emplace_back("Access-Control-Allow-Origin", origin);
    headers.emplace_back("Access-Control-Expose-Headers", kExposed);
  }
  return headers;
}

bool Cors::is_preflight(const http::Request& request) const {
  return on() && request.method == "OPTIONS" && !request.header("Origin").empty() &&
         !request.header("Access-Control-Request-Method").empty();
}

http::Response Cors::preflight(const http::Request& request, const std::string& methods) const {
  http::Response response{.status = 204, .content_type = ""};
  response.headers = {{"Vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"}};
  const std::string_view origin = allowed(request.header("Origin"));
  if (origin.empty()) return response;  // which the browser takes for a no
  response.headers.emplace_back("Access-Control-Allow-Origin", origin);
  response.headers.emplace_back("Access-Control-Allow-Methods", methods);
  const std::string_view asked = request.header("Access-Control-Request-Headers");
  if (!asked.empty() && names_headers(asked)) response.headers.emplace_back("Access-Control-Allow-Headers", asked);
  response.headers.emplace_back("Access-Control-Max-Age", kMaxAge);
  return response;
}

}  // namespace xgen::server
