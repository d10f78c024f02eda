// MemoryBudget: the bytes that one memory (the host's, a GPU's) may give to all models of the process, and who has
// them. It counts; it allocates nothing.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/result.h"

namespace xgen {

// Thread-safe. Every owner has an account. What it reserves is its own until it ends; what nobody has reserved may be
// borrowed, and is given back when it is wanted. Reserved and borrowed bytes together never exceed the total.
class MemoryBudget {
 public:
  explicit MemoryBudget(std::uint64_t total) : total_(total) {}
  ~MemoryBudget();
  MemoryBudget(const MemoryBudget&) = delete;
  MemoryBudget& operator=(const MemoryBudget&) = delete;

  // Closed when it is destroyed. The budget must outlive it.
  class Account : public std::enable_shared_from_this<Account> {
   public:
    ~Account() { close(); }
    Account(const Account&) = delete;
    Account& operator=(const Account&) = delete;

    // Returns everything, for good: others may hold a reference for a moment longer. Neither its owner nor its reclaim
    // may be at work.
    void close();

    std::uint64_t reserved() const;
    std::uint64_t borrowed() const;
    // False where so much is not left; borrowers that have more than this account are then asked to give some back.
    bool borrow(std::uint64_t bytes);
    void give_back(std::uint64_t bytes);
    // Less than is reserved now.
    void shrink(std::uint64_t reserved);
    // The owner can do with `keep` reserved bytes, and gives back the others, once they are borrowed, in units of
    // `unit`.
    void may_lend(std::uint64_t keep, std::uint64_t unit);
    // What is reserved beyond `reserved` becomes borrowed, as far as the owner may lend it.
    void lend(std::uint64_t reserved);
    // Asks the owner to give back borrowed bytes. `must`: they are wanted for a reservation, so that work in progress
    // has to yield; otherwise only what is kept in case it is useful. Called from any thread, must not block and must
    // not call the budget. An empty function ends it; it is not running when this returns.
    using Reclaim = std::function<void(std::uint64_t bytes, bool must)>;
    void on_reclaim(Reclaim reclaim);

   private:
    friend class MemoryBudget;
    Account(MemoryBudget& budget, std::string owner) : budget_(budget), owner_(std::move(owner)) {}
    MemoryBudget& budget_;
    const std::string owner_;
    std::uint64_t reserved_ = 0;
    std::uint64_t borrowed_ = 0;
    std::uint64_t keep_ = 0;
    std::uint64_t unit_ = 1;
    std::mutex reclaim_mutex_;  // before the budget's
    Reclaim reclaim_;
  };

  std::uint64_t total() const { return total_; }
  // What could be reserved: borrowed bytes count as free.
  std::uint64_t unreserved() const;
  // Waits up to `patience` for borrowers to give back. Errors: unavailable with the numbers.
  Result<std::shared_ptr<Account>> reserve(const std::string& owner, std::uint64_t bytes,
                                           std::chrono::milliseconds patience);
  // More for an account that exists (a model that wakes up).
  Status grow(Account& account, std::uint64_t bytes, std::chrono::milliseconds patience);

  struct Use {
    std::string owner;
    std::uint64_t reserved = 0;
    std::uint64_t borrowed = 0;
  };
  std::vector<Use> uses() const;  // in order of reservation

 private:
  Error too_little(const std::string& owner, std::uint64_t bytes) const;
  void ask(std::uint64_t bytes, bool must, const Account* beneficiary, std::uint64_t above);

  const std::uint64_t total_;
  mutable std::mutex mutex_;
  std::condition_variable given_back_;
  std::uint64_t reserved_ = 0;  // over all accounts, as are the next two
  std::uint64_t borrowed_ = 0;
  std::uint64_t promised_ = 0;  // wanted by reservations that wait: not lent meanwhile
  std::list<Account*> accounts_;
};

}  // namespace xgen
