// ApiKeys: who may ask for what, and how much of it a minute.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "server/rate_limit.h"

namespace xgen::server {

enum class Scope : std::uint8_t {
  inference,  // the models and what they answer
  metrics,
  admin,  // loading and unloading
};
std::string_view scope_name(Scope scope);

struct ApiKey {
  std::string name;                       // in the log
  std::array<std::uint8_t, 32> digest{};  // SHA-256 of the key: the key itself is kept nowhere
  std::vector<Scope> scopes;
  RateLimits limits;
};

// Thread-safe.
class ApiKeys {
 public:
  // These instead of those before. A key whose name and limits stay keeps what it has used of them.
  void set(std::vector<ApiKey> keys);

  struct Caller {
    std::string name;
    std::shared_ptr<RateLimit> limit;  // null: none
  };
  // `authorization`: the value of the request's header, "Bearer KEY" (RFC 6750). The time that it takes does not tell
  // how much of a wrong key is right. Without `scope` any key will do. Errors: unauthenticated; permission_denied if
  // the key lacks the scope. Messages never hold the key.
  Result<Caller> check(std::string_view authorization, std::optional<Scope> scope) const;

 private:
  struct Entry {
    ApiKey key;
    std::shared_ptr<RateLimit> limit;
  };
  using Table = std::vector<Entry>;  // by digest
  std::shared_ptr<const Table> current() const;

  mutable std::mutex mutex_;
  std::shared_ptr<const Table> table_ = std::make_shared<Table>();
};

}  // namespace xgen::server
