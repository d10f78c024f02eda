#include "server/proxies.h"

#include <algorithm>
#include <optional>
#include <utility>

namespace xgen::server {
namespace {

using Hop = std::optional<IpAddress>;  // nullopt: it is not told in a way that can be read
using Way = std::vector<Hop>;          // our end first

std::string_view trimmed(std::string_view text) {
  const auto blank = [](char c) { return c == ' ' || c == '\t'; };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return text;
}

bool starts_alike(std::string_view name, std::string_view prefix) {
  return name.size() >= prefix.size() && http::equal_ignoring_case(name.substr(0, prefix.size()), prefix);
}

// Calls use(part) for what stands between separators outside quotes, the last part first: proxies append, and a quote
// that the client has left open must not swallow what they say.
template <class Use>
void each_part_from_last(std::string_view text, char separator, bool quotes, Use use) {
  std::size_t end = text.size();
  bool quoted = false;
  for (std::size_t i = text.size(); i-- > 0;) {
    if (quotes && text[i] == '"') {
      std::size_t escapes = 0;
      while (escapes < i && text[i - escapes - 1] == '\\') ++escapes;
      if (escapes % 2 == 0) quoted = !quoted;
    } else if (text[i] == separator && !quoted) {
      use(trimmed(text.substr(i + 1, end - i - 1)));
      end = i;
    }
  }
  use(trimmed(text.substr(0, end)));
}

// RFC 7239: for=10.0.0.1, for="[2001:db8::1]:80"
Hop forwarded_for(std::string_view element) {
  Hop hop;
  int times = 0;
  each_part_from_last(element, ';', true, [&](std::string_view pair) {
    constexpr std::string_view kFor = "for=";
    if (!starts_alike(pair, kFor)) return;
    ++times;
    std::string_view value = pair.substr(kFor.size());
    if (value.size() >= 2 && value.front() == '"' && value.back() == '"') value = value.substr(1, value.size() - 2);
    hop = IpAddress::parse_endpoint(value);
  });
  return times == 1 ? hop : Hop();
}

// The first one before the trusted proxies: what stands further out is the client's own word.
Hop client_of(const Way& way, const Proxies& trusted) {
  for (auto hop = way.begin(); hop != way.end(); ++hop) {
    const bool proxy =
        *hop && std::any_of(trusted.begin(), trusted.end(), [&](const auto& t) { return t.contains(**hop); });
    if (!proxy || std::next(hop) == way.end()) return *hop;
  }
  return {};
}

// What the headers say of the client; `told`: they say something.
struct Told {
  bool told = false;
  Hop client;
};
Told told_client(const http::Request& request, const Proxies& trusted) {
  Way x_forwarded;
  Way forwarded;
  for (auto header = request.headers.rbegin(); header != request.headers.rend(); ++header) {
    const auto& [name, value] = *header;
    if (http::equal_ignoring_case(name, "x-forwarded-for"))
      each_part_from_last(value, ',', false,
                          [&](std::string_view part) { x_forwarded.push_back(IpAddress::parse_endpoint(part)); });
    else if (http::equal_ignoring_case(name, "forwarded"))
      each_part_from_last(value, ',', true, [&](std::string_view part) { forwarded.push_back(forwarded_for(part)); });
  }
  if (x_forwarded.empty() && forwarded.empty()) return {};
  if (forwarded.empty()) return {true, client_of(x_forwarded, trusted)};
  if (x_forwarded.empty()) return {true, client_of(forwarded, trusted)};
  // A proxy that writes one of them may pass the other on as the client has sent it.
  const Hop client = client_of(x_forwarded, trusted);
  return {true, client == client_of(forwarded, trusted) ? client : Hop()};
}

}  // namespace

bool from_trusted_proxy(const http::Request& request, const Proxies& trusted) {
  if (trusted.empty()) return false;
  const Hop peer = IpAddress::parse_endpoint(request.remote);
  return peer && std::any_of(trusted.begin(), trusted.end(), [&](const auto& each) { return each.contains(*peer); });
}

std::string client_address(const http::Request& request, const Proxies& trusted) {
  if (from_trusted_proxy(request, trusted))
    if (const Told told = told_client(request, trusted); told.client) return told.client->text();
  return request.remote;
}

std::string_view forwarding_header(const http::Request& request) {
  for (const auto& [name, value] : request.headers) {
    const auto is = [&name = name](std::string_view known) { return http::equal_ignoring_case(name, known); };
    if (is("forwarded") || is("via") || is("x-real-ip") || starts_alike(name, "x-forwarded-") ||
        starts_alike(name, "x-user-"))  // XGEN's gateway may send nothing else of them
      return name;
  }
  return {};
}

bool is_from_here(const http::Request& request, const Proxies& trusted) {
  const Hop peer = IpAddress::parse_endpoint(request.remote);
  if (!peer || !peer->is_loopback()) return false;
  if (forwarding_header(request).empty()) return true;
  if (!from_trusted_proxy(request, trusted)) return false;
  const Told told = told_client(request, trusted);
  return told.client && told.client->is_loopback();
}

std::string_view only_value(const http::Request& request, std::string_view name) {
  std::string_view found;
  int times = 0;
  for (const auto& [key, value] : request.headers) {
    if (!http::equal_ignoring_case(key, name)) continue;
    found = value;
    ++times;
  }
  return times == 1 ? found : std::string_view();
}

}  // namespace xgen::server
