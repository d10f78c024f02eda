// `xgen-model healthcheck`: asks a running server whether it is well.
#pragma once

#include <string>

#include "base/result.h"

namespace xgen {

// Where a server that listens on this address answers a probe (ready, live or startup) on this machine.
std::string health_url(const std::string& listens_on, int port, const std::string& probe);

// What the server says. Errors name the URL: that there was no answer within 3 s, or an answer other than 200.
Result<std::string> ask_health(const std::string& url, const std::string& user_agent);

}  // namespace xgen
