#include "http/name_lookup.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <thread>
#include <utility>

namespace xgen::http {

Client::Addresses addresses_of(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_ADDRCONFIG;
  addrinfo* list = nullptr;
  const int status = ::getaddrinfo(host.c_str(), nullptr, &hints, &list);
  if (status != 0) {
    const bool none = status == EAI_NONAME || status == EAI_NODATA || status == EAI_ADDRFAMILY;
    const char* reason = status == EAI_SYSTEM ? std::strerror(errno) : ::gai_strerror(status);
    return make_error(none ? ErrorCode::not_found : ErrorCode::unavailable, host + ": " + reason);
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owned(list, &::freeaddrinfo);
  std::vector<std::string> addresses;
  for (const addrinfo* each = list; each != nullptr; each = each->ai_next) {
    char text[NI_MAXHOST];
    if (::getnameinfo(each->ai_addr, each->ai_addrlen, text, sizeof text, nullptr, 0, NI_NUMERICHOST) != 0) continue;
    if (std::find(addresses.begin(), addresses.end(), text) == addresses.end()) addresses.emplace_back(text);
  }
  if (addresses.empty()) return make_error(ErrorCode::not_found, host + ": the name has no address");
  return addresses;
}

NameLookup::NameLookup(std::function<Addresses(const std::string&)> ask)
    : ask_(ask ? std::move(ask) : std::function<Addresses(const std::string&)>(addresses_of)) {}

void NameLookup::start(const std::string& host, std::function<void(Addresses)> done) {
  std::string fault;
  {
    std::lock_guard lock(mutex_);
    const auto found = waiting_.find(host);
    if (found != waiting_.end()) {
      found->second.push_back(std::move(done));
      return;
    }
    if (waiting_.size() < kMostNames) {
      std::vector<std::function<void(Addresses)>>& waiting = waiting_[host];
      waiting.push_back(std::move(done));
      try {
        // Detached: it may sleep in the system for as long as the name server is silent.
        std::thread([self = shared_from_this(), host] { self->run(host); }).detach();
        return;
      } catch (const std::system_error& error) {
        fault = error.what();
        done = std::move(waiting.back());
        waiting_.erase(host);
      }
    } else {
      fault = std::to_string(kMostNames) + " other names are being looked up";
    }
  }
  done(make_error(ErrorCode::unavailable, host + ": " + fault));
}

void NameLookup::run(const std::string& host) {
  const Addresses addresses = ask_(host);
  std::vector<std::function<void(Addresses)>> waiting;
  {
    std::lock_guard lock(mutex_);
    waiting = std::move(waiting_.extract(host).mapped());
  }
  for (const auto& done : waiting) done(addresses);
}

}  // namespace xgen::http
