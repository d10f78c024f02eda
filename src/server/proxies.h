// What proxies in front say of a request, and when it counts.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/ip_range.h"
#include "http/server.h"

namespace xgen::server {

using Proxies = std::vector<IpRange>;

// Whether the request's peer is one of `trusted`.
bool from_trusted_proxy(const http::Request& request, const Proxies& trusted);

// The client's address for the log: where a trusted proxy tells it, what it tells, else the peer with its port.
std::string client_address(const http::Request& request, const Proxies& trusted);

// The header by which a proxy has told that it forwards the request; empty if there is none.
std::string_view forwarding_header(const http::Request& request);

// Whether the client is on this machine: the peer is, and where the request was forwarded, a trusted proxy tells so of
// the client, too. In doubt it is not.
bool is_from_here(const http::Request& request, const Proxies& trusted);

// The value of a header that stands there once; empty otherwise: of two, one may be what the client has sent and the
// proxy has passed on.
std::string_view only_value(const http::Request& request, std::string_view name);

}  // namespace xgen::server
