#include "server/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "http/headers.h"

namespace xgen::server {
namespace {

using Digest = std::array<std::uint8_t, 32>;

Digest sha256(std::string_view text) {
  Digest digest{};
  EVP_Digest(text.data(), text.size(), digest.data(), nullptr, EVP_sha256(), nullptr);
  return digest;
}

// What stands after "Bearer"; empty if that is not what it says.
std::string_view bearer(std::string_view authorization) {
  constexpr std::string_view kScheme = "Bearer ";
  if (authorization.size() < kScheme.size() ||
      !http::equal_ignoring_case(authorization.substr(0, kScheme.size()), kScheme))
    return {};
  authorization.remove_prefix(kScheme.size());
  while (authorization.starts_with(' ')) authorization.remove_prefix(1);
  while (authorization.ends_with(' ')) authorization.remove_suffix(1);
  return authorization;
}

}  // namespace

std::string_view scope_name(Scope scope) {
  switch (scope) {
    case Scope::inference:
      return "inference";
    case Scope::metrics:
      return "metrics";
    case Scope::admin:
      break;
  }
  return "admin";
}

void ApiKeys::set(std::vector<ApiKey> keys) {
  const std::shared_ptr<const Table> before = current();
  std::unordered_map<std::string_view, const Entry*> by_name;
  for (const Entry& entry : *before) by_name.emplace(entry.key.name, &entry);
  auto table = std::make_shared<Table>();
  for (ApiKey& key : keys) {
    Entry entry{std::move(key), nullptr};
    if (entry.key.limits.any()) {
      const auto old = by_name.find(entry.key.name);
      const bool same = old != by_name.end() && old->second->key.limits == entry.key.limits;
      entry.limit = same ? old->second->limit : std::make_shared<RateLimit>(entry.key.limits);
    }
    table->push_back(std::move(entry));
  }
  std::sort(table->begin(), table->end(), [](const Entry& a, const Entry& b) { return a.key.digest < b.key.digest; });
  std::lock_guard lock(mutex_);
  table_ = std::move(table);
}

std::shared_ptr<const ApiKeys::Table> ApiKeys::current() const {
  std::lock_guard lock(mutex_);
  return table_;
}

Result<ApiKeys::Caller> ApiKeys::check(std::string_view authorization, std::optional<Scope> scope) const {
  const std::string_view given = bearer(authorization);
  if (given.empty())
    return make_error(ErrorCode::unauthenticated,
                      "This server asks for an API key: send it as 'Authorization: Bearer KEY'.");
  const Digest digest = sha256(given);
  const std::shared_ptr<const Table> table = current();
  // The search may tell how the digest begins; nobody can choose a key by its digest.
  const auto found =
      std::lower_bound(table->begin(), table->end(), digest,
                       [](const Entry& entry, const Digest& wanted) { return entry.key.digest < wanted; });
  if (found == table->end() || CRYPTO_memcmp(found->key.digest.data(), digest.data(), digest.size()) != 0)
    return make_error(ErrorCode::unauthenticated, "The API key is not valid.");
  const ApiKey& key = found->key;
  if (scope && std::find(key.scopes.begin(), key.scopes.end(), *scope) == key.scopes.end())
    return make_error(ErrorCode::permission_denied, "The API key '" + key.name +
                                                        "' does not allow this: it lacks the scope '" +
                                                        std::string(scope_name(*scope)) + "'.");
  return Caller{key.name, found->limit};
}

}  // namespace xgen::server
