#include "remote/address_watch.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/log.h"

namespace xgen::remote {
namespace {

constexpr std::chrono::milliseconds kSoon{1'000};  // to the next look, while there is nothing

bool is_v6(const std::string& address) { return address.find(':') != std::string::npos; }

std::vector<std::string> one_family(std::vector<std::string> found, const std::vector<std::string>& before) {
  const auto has = [&](bool v6) {
    return std::any_of(found.begin(), found.end(), [v6](const std::string& each) { return is_v6(each) == v6; });
  };
  bool v6 = is_v6(found.front());
  if (!before.empty() && has(is_v6(before.front()))) v6 = is_v6(before.front());
  std::erase_if(found, [v6](const std::string& each) { return is_v6(each) != v6; });
  std::sort(found.begin(), found.end());  // name servers turn the order
  return found;
}

}  // namespace

AddressWatch::AddressWatch(AddressOptions options, http::Client& client, Found found)
    : options_(std::move(options)), client_(client), found_(std::move(found)) {
  for (const http::Url& each : options_.urls) names_.try_emplace(each.host);
}

void AddressWatch::start() {
  for (const auto& each : names_) look(each.first);
}

void AddressWatch::look(const std::string& host) {
  client_.resolve(host, [weak = weak_from_this(), host](http::Client::Addresses addresses) {
    if (const auto self = weak.lock()) self->take(host, std::move(addresses));
  });
}

void AddressWatch::take(const std::string& host, http::Client::Addresses addresses) {
  std::lock_guard lock(mutex_);
  Name& name = names_.at(host);
  name.answered = true;
  std::string fault;
  if (addresses) {
    name.addresses = one_family(*std::move(addresses), name.addresses);
  } else {
    fault = addresses.error().message;
    if (addresses.error().code == ErrorCode::not_found) name.addresses.clear();
  }
  if (!fault.empty() && fault != name.fault)
    log::warn("remote", "a name is not found", {{"model", options_.model}, {"reason", fault}});
  name.fault = std::move(fault);
  std::vector<http::Url> now = list();
  name.timer = client_.after(now.empty() ? std::min(options_.interval, kSoon) : options_.interval,
                             [weak = weak_from_this(), host] {
                               if (const auto self = weak.lock()) self->look(host);
                             });
  const bool all_answered =
      std::all_of(names_.begin(), names_.end(), [](const auto& each) { return each.second.answered; });
  if (now == last_ && (told_ || !all_answered)) return;
  told_ = true;
  last_ = now;
  found_(std::move(now));
}

std::vector<http::Url> AddressWatch::list() {
  std::vector<http::Url> all;
  std::set<std::string> names;
  for (const http::Url& url : options_.urls) {
    for (const std::string& address : names_.at(url.host).addresses) {
      http::Url one = url;
      one.address = address;
      if (names.insert(replica_name(one)).second) all.push_back(std::move(one));
    }
  }
  const bool too_many = all.size() > options_.max_addresses;
  if (too_many && !too_many_)
    log::warn("remote", "there are more addresses than are used",
              {{"model", options_.model}, {"addresses", all.size()}, {"used", options_.max_addresses}});
  too_many_ = too_many;
  if (too_many) all.resize(options_.max_addresses);
  return all;
}

std::string replica_name(const http::Url& url) {
  http::Url at = url;
  if (!url.address.empty()) at.host = url.address;
  return at.text();
}

}  // namespace xgen::remote
