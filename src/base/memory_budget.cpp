#include "base/memory_budget.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "base/units.h"

namespace xgen {

MemoryBudget::~MemoryBudget() { assert(reserved_ == 0 && borrowed_ == 0); }

void MemoryBudget::Account::close() {
  on_reclaim({});
  std::lock_guard lock(budget_.mutex_);
  budget_.reserved_ -= std::exchange(reserved_, 0);
  budget_.borrowed_ -= std::exchange(borrowed_, 0);
  budget_.accounts_.remove(this);
  budget_.given_back_.notify_all();
}

std::uint64_t MemoryBudget::Account::reserved() const {
  std::lock_guard lock(budget_.mutex_);
  return reserved_;
}

std::uint64_t MemoryBudget::Account::borrowed() const {
  std::lock_guard lock(budget_.mutex_);
  return borrowed_;
}

bool MemoryBudget::Account::borrow(std::uint64_t bytes) {
  std::uint64_t mine = 0;
  {
    std::lock_guard lock(budget_.mutex_);
    const std::uint64_t taken = budget_.reserved_ + budget_.borrowed_ + budget_.promised_;
    if (taken <= budget_.total_ && bytes <= budget_.total_ - taken) {
      borrowed_ += bytes;
      budget_.borrowed_ += bytes;
      return true;
    }
    if (budget_.promised_ > 0) return false;
    mine = borrowed_ + bytes;
  }
  budget_.ask(bytes, false, this, mine);
  return false;
}

void MemoryBudget::Account::give_back(std::uint64_t bytes) {
  std::lock_guard lock(budget_.mutex_);
  assert(bytes <= borrowed_);
  borrowed_ -= bytes;
  budget_.borrowed_ -= bytes;
  budget_.given_back_.notify_all();
}

void MemoryBudget::Account::shrink(std::uint64_t reserved) {
  std::lock_guard lock(budget_.mutex_);
  assert(reserved <= reserved_);
  budget_.reserved_ -= reserved_ - reserved;
  reserved_ = reserved;
  budget_.given_back_.notify_all();
}

void MemoryBudget::Account::may_lend(std::uint64_t keep, std::uint64_t unit) {
  std::lock_guard lock(budget_.mutex_);
  keep_ = keep;
  unit_ = unit;
}

void MemoryBudget::Account::lend(std::uint64_t reserved) {
  std::lock_guard reclaim(reclaim_mutex_);
  if (!reclaim_) return;  // nobody would give it back
  std::lock_guard lock(budget_.mutex_);
  const std::uint64_t least = std::max(reserved, keep_);
  if (reserved_ <= least) return;
  const std::uint64_t lent = (reserved_ - least) / unit_ * unit_;
  reserved_ -= lent;
  borrowed_ += lent;
  budget_.reserved_ -= lent;
  budget_.borrowed_ += lent;
}

void MemoryBudget::Account::on_reclaim(Reclaim reclaim) {
  std::lock_guard lock(reclaim_mutex_);
  reclaim_ = std::move(reclaim);
}

std::uint64_t MemoryBudget::unreserved() const {
  std::lock_guard lock(mutex_);
  return total_ - reserved_;
}

Error MemoryBudget::too_little(const std::string& owner, std::uint64_t bytes) const {
  std::string text = "'" + owner + "' needs " + format_bytes(bytes) + ", but of the memory budget of " +
                     format_bytes(total_) + " only " + format_bytes(total_ - reserved_) + " is not reserved";
  std::string list;
  for (const Account* account : accounts_) {
    if (account->reserved_ == 0) continue;
    list += (list.empty() ? " (" : ", ") + account->owner_ + " " + format_bytes(account->reserved_);
  }
  return make_error(ErrorCode::unavailable, text + (list.empty() ? "" : list + ")") + ".");
}

Result<std::shared_ptr<MemoryBudget::Account>> MemoryBudget::reserve(const std::string& owner, std::uint64_t bytes,
                                                                     std::chrono::milliseconds patience) {
  std::shared_ptr<Account> account(new Account(*this, owner));
  {
    std::lock_guard lock(mutex_);
    accounts_.push_back(account.get());
  }
  if (Status status = grow(*account, bytes, patience); !status) return std::move(status).error();
  return account;
}

Status MemoryBudget::grow(Account& account, std::uint64_t bytes, std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  const auto fits = [&](std::uint64_t taken) { return taken <= total_ && bytes <= total_ - taken; };
  // Others that wait have a claim already.
  if (!fits(reserved_ + promised_)) return too_little(account.owner_, bytes);
  promised_ += bytes;
  const auto deadline = std::chrono::steady_clock::now() + patience;
  bool enough = fits(reserved_ + borrowed_);
  while (!enough) {
    const std::uint64_t missing = bytes - (total_ - reserved_ - borrowed_);
    lock.unlock();
    ask(missing, true, &account, 0);
    lock.lock();
    enough = given_back_.wait_until(lock, deadline, [&] { return fits(reserved_ + borrowed_); });
    if (!enough) break;
  }
  promised_ -= bytes;
  if (!enough) {
    Error error = too_little(account.owner_, bytes);
    error.message += " Borrowed KV cache was not given back in time.";
    return error;
  }
  reserved_ += bytes;
  account.reserved_ += bytes;
  return {};
}

// The largest borrowers first, all for what is missing: they give back what they can, and not more than they have.
void MemoryBudget::ask(std::uint64_t bytes, bool must, const Account* beneficiary, std::uint64_t above) {
  std::vector<std::pair<std::uint64_t, std::shared_ptr<Account>>> borrowers;
  {
    std::lock_guard lock(mutex_);
    for (Account* each : accounts_) {
      if (each == beneficiary || each->borrowed_ <= above) continue;
      if (auto account = each->weak_from_this().lock()) borrowers.emplace_back(each->borrowed_, std::move(account));
    }
  }
  std::sort(borrowers.begin(), borrowers.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  for (const auto& [borrowed, account] : borrowers) {
    const std::uint64_t part = std::min(bytes, borrowed);
    {
      std::lock_guard lock(account->reclaim_mutex_);
      if (account->reclaim_) account->reclaim_(part, must);
    }
    bytes -= part;
    if (bytes == 0) break;
  }
}

std::vector<MemoryBudget::Use> MemoryBudget::uses() const {
  std::lock_guard lock(mutex_);
  std::vector<Use> out;
  for (const Account* each : accounts_) out.push_back({each->owner_, each->reserved_, each->borrowed_});
  return out;
}

}  // namespace xgen
