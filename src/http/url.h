// Url: where a request of the client goes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace xgen::http {

struct Url {
  bool tls = false;  // https
  std::string host;  // lower case; IPv6 without brackets
  std::uint16_t port = 80;
  std::string target = "/";  // path and query, as sent
  // Where to connect, instead of looking the host up: IPv4, or IPv6 without brackets. Everything else (the Host header,
  // the certificate's name, what is printed) stays the host's. Empty: looked up.
  std::string address;

  // What the Host header says: the port only where it is not the scheme's own, IPv6 in brackets.
  std::string authority() const;
  std::string origin() const;                             // "https://host:8443"
  std::string text() const { return origin() + target; }  // the whole
  bool operator==(const Url&) const = default;
};

// http and https, absolute. Refused: user-info, other schemes, blanks and control characters, bad ports. A fragment is
// dropped. Errors: invalid_argument, naming the URL without what may be secret in it.
Result<Url> parse_url(std::string_view text);

// What a Location header means for an answer from `base` (RFC 3986 5.2, without merging "..": servers do that).
Result<Url> join_url(const Url& base, std::string_view reference);

}  // namespace xgen::http
