#include "http/url.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>

#include "http/headers.h"

namespace xgen::http {
namespace {

constexpr std::size_t kMaxUrl = 16 << 10;  // bytes
constexpr std::size_t kMaxHost = 253;      // of a name in DNS

bool is_host_char(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
}

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

Error bad(std::string_view why) { return make_error(ErrorCode::invalid_argument, "not a URL: " + std::string(why)); }

}  // namespace

std::string Url::authority() const {
  std::string out = host.find(':') == std::string::npos ? host : "[" + host + "]";
  if (port != (tls ? 443 : 80)) out += ":" + std::to_string(port);
  return out;
}

std::string Url::origin() const { return (tls ? "https://" : "http://") + authority(); }

Result<Url> parse_url(std::string_view text) {
  if (text.size() > kMaxUrl) return bad("it is longer than " + std::to_string(kMaxUrl) + " bytes");
  for (const char c : text)
    if (static_cast<unsigned char>(c) <= ' ' || c == '\x7f') return bad("it contains a blank or a control character");
  Url url;
  const std::size_t scheme = text.find("://");
  const std::string_view name = text.substr(0, std::min(scheme, text.size()));
  if (scheme != std::string_view::npos && equal_ignoring_case(name, "https")) {
    url.tls = true;
  } else if (scheme == std::string_view::npos || !equal_ignoring_case(name, "http")) {
    return bad("it must begin with http:// or https://");
  }
  text.remove_prefix(scheme + 3);
  text = text.substr(0, text.find('#'));
  const std::size_t end = std::min(text.find_first_of("/?"), text.size());
  std::string_view authority = text.substr(0, end);
  if (authority.find('@') != std::string_view::npos)
    return bad("a user name or password in it is not accepted; credentials go into a header");
  if (authority.starts_with('[')) {
    const std::size_t close = authority.find(']');
    if (close == std::string_view::npos) return bad("']' is missing after the IPv6 address");
    url.host = authority.substr(1, close - 1);
    in6_addr address{};
    if (inet_pton(AF_INET6, url.host.c_str(), &address) != 1) return bad("'" + url.host + "' is no IPv6 address");
    authority.remove_prefix(close + 1);
    if (!authority.empty() && authority.front() != ':') return bad("only ':' and a port may follow the IPv6 address");
  } else {
    const std::size_t colon = std::min(authority.find(':'), authority.size());
    url.host = authority.substr(0, colon);
    authority.remove_prefix(colon);
  }
  std::transform(url.host.begin(), url.host.end(), url.host.begin(), lower);
  if (url.host.empty()) return bad("the host is missing");
  if (url.host.find(':') == std::string::npos &&
      (url.host.size() > kMaxHost || !std::all_of(url.host.begin(), url.host.end(), is_host_char)))
    return bad("'" + url.host.substr(0, kMaxHost) + "' is no host name");
  url.port = url.tls ? 443 : 80;
  if (!authority.empty()) {
    authority.remove_prefix(1);
    const auto [stop, fault] = std::from_chars(authority.data(), authority.data() + authority.size(), url.port);
    if (fault != std::errc{} || stop != authority.data() + authority.size() || url.port == 0)
      return bad("'" + std::string(authority) + "' is no port (1 to 65535)");
  }
  url.target = text.substr(end);
  if (!url.target.starts_with('/')) url.target.insert(0, "/");
  return url;
}

Result<Url> join_url(const Url& base, std::string_view reference) {
  if (reference.starts_with("//")) return parse_url((base.tls ? "https:" : "http:") + std::string(reference));
  const std::size_t colon = reference.find(':');
  if (colon != std::string_view::npos && colon < reference.find_first_of("/?#")) return parse_url(reference);
  if (reference.starts_with('/')) return parse_url(base.origin() + std::string(reference));
  const std::string path = base.target.substr(0, base.target.find('?'));
  if (reference.starts_with('?')) return parse_url(base.origin() + path + std::string(reference));
  return parse_url(base.origin() + path.substr(0, path.rfind('/') + 1) + std::string(reference));
}

}  // namespace xgen::http
