// AddressWatch: the addresses behind the hosts of a model's URLs, looked up again and again, as the pods behind a
// headless Service of Kubernetes come and go.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "http/client.h"

namespace xgen::remote {

struct AddressOptions {
  std::string model;  // for the log
  std::vector<http::Url> urls;
  std::chrono::milliseconds interval{10'000};  // between looks; without any address it is looked sooner
  std::size_t max_addresses = 256;             // of all URLs together
};

// A name that has no address any more has none here; while it cannot be looked up, what was known stays. Of a name with
// addresses of both families one family counts, so that no server does twice: the one in use, else that of
// getaddrinfo's first. Each name is looked up by itself: one whose name server is silent holds up no other.
class AddressWatch final : public std::enable_shared_from_this<AddressWatch> {
 public:
  // Each URL once for each of its host's addresses (Url::address), in a steady order, none twice. Called on the
  // client's thread when something has changed, and after the first look at all names even if there is no address.
  using Found = std::function<void(std::vector<http::Url>)>;

  // `client` must outlive it. When the last reference goes, nothing more is found.
  AddressWatch(AddressOptions options, http::Client& client, Found found);
  // Once.
  void start();

 private:
  struct Name {
    std::vector<std::string> addresses;
    std::string fault;      // of the last look
    bool answered = false;  // there has been a look
    std::unique_ptr<http::Client::Timer> timer;
  };

  void look(const std::string& host);
  void take(const std::string& host, http::Client::Addresses addresses);
  std::vector<http::Url> list();

  const AddressOptions options_;
  http::Client& client_;
  const Found found_;
  std::mutex mutex_;
  std::map<std::string, Name> names_;  // by host; none joins or leaves
  bool too_many_ = false;
  bool told_ = false;
  std::vector<http::Url> last_;
};

// The name of a replica: its URL, with the address in the host's place.
std::string replica_name(const http::Url& url);

}  // namespace xgen::remote
