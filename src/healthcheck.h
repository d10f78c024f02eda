// `xgen-model healthcheck`: asks a running server whether it is well.
#pragma once

#include <string>

#include "base/result.h"
#include "config/config.h"

namespace xgen {

// Whom to ask. Without files a server with TLS is trusted as any other.
struct HealthTarget {
  std::string url;
  std::string pinned_cert_file;  // as in http::ClientRequest
  std::string cert_file;
  std::string key_file;
};

// A probe (ready, live or startup) of the server that runs on this machine with these settings. With TLS it must show
// the certificate of its file, whatever names that is for. Where it lets nobody in without a certificate, its own is
// shown to it, for lack of another.
HealthTarget health_target(const config::Server& server, const std::string& probe);

// What the server says. Errors name the URL: that there was no answer within 3 s, or an answer other than 200.
Result<std::string> ask_health(const HealthTarget& target, const std::string& user_agent);

}  // namespace xgen
