// Looks up the addresses of names, each name on a thread of its own: a name server that does not answer for one keeps
// no other waiting, and nobody waits for it at the end.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "http/client.h"

namespace xgen::http {

class NameLookup : public std::enable_shared_from_this<NameLookup> {
 public:
  using Addresses = Client::Addresses;

  // `ask`: instead of asking the system; may block.
  explicit NameLookup(std::function<Addresses(const std::string&)> ask = {});

  // `done` is called once: on the name's thread, or from here. Whoever asks for a name that is being looked up gets the
  // same answer. Errors: those of Client::resolve(); and unavailable where kMostNames are being looked up.
  void start(const std::string& host, std::function<void(Addresses)> done);
  static constexpr std::size_t kMostNames = 64;

 private:
  void run(const std::string& host);

  const std::function<Addresses(const std::string&)> ask_;
  std::mutex mutex_;
  std::map<std::string, std::vector<std::function<void(Addresses)>>> waiting_;  // by name
};

// By getaddrinfo(3); without the addresses of a family that the machine itself has none of.
Client::Addresses addresses_of(const std::string& host);

}  // namespace xgen::http
