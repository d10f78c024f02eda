#include "http/io_thread.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/intrusive/list.hpp>

#include "base/log.h"
#include "http/connection.h"

namespace xgen::http {

namespace asio = boost::asio;
namespace intrusive = boost::intrusive;
using Clock = std::chrono::steady_clock;
using SysError = boost::system::error_code;
using std::chrono::milliseconds;

namespace {

constexpr milliseconds kLinger{5'000};   // how long the rest of a refused request is read and dropped
constexpr milliseconds kGoneCheck{250};  // how often a connection that is not being read is looked at
constexpr int kMaxLookedAt = 64;         // connections, to find one that may be closed

}  // namespace

struct IoThread::InboxList
    : intrusive::list<Connection, intrusive::member_hook<Connection, InboxHook, &Connection::inbox_hook_>,
                      intrusive::constant_time_size<false>> {};

struct IoThread::Lists {
  using WaitList = intrusive::list<Connection, intrusive::member_hook<Connection, Hook, &Connection::wait_hook_>,
                                   intrusive::constant_time_size<false>>;
  using AllList = intrusive::list<Connection, intrusive::member_hook<Connection, Hook, &Connection::thread_hook_>,
                                  intrusive::constant_time_size<false>>;
  std::array<WaitList, kWaits> waiting;
  AllList all;
  InboxList inbox;  // under inbox_mutex_
};

IoThread::IoThread(std::shared_ptr<ServerState> shared)
    : shared_(std::move(shared)), timer_(context_), lists_(std::make_unique<Lists>()) {
  for (auto& oldest : oldest_) oldest.store(Clock::time_point::max().time_since_epoch().count());
}

IoThread::~IoThread() = default;

void report_fault(std::string_view where, const char* what) noexcept {
  try {
    log::error("http", "fault in " + std::string(where), {{"reason", what}});
  } catch (const std::exception&) {  // not even memory for the line
  }
}

void IoThread::add(Connection& connection) { lists_->all.push_back(connection); }

// Connections contain their own faults; this is for the little that is done between them.
void IoThread::start() {
  thread_ = std::thread([this] {
    for (;;) {
      try {
        context_.run();
        return;
      } catch (const std::exception& fault) {
        report_fault("the event loop", fault.what());
      }
    }
  });
}

void IoThread::stop() {
  asio::post(context_, [this] {
    {
      Turn turn(*this);
      std::vector<std::function<void()>> first;
      {
        std::lock_guard lock(inbox_mutex_);
        first.swap(before_stop_);
      }
      for (const auto& work : first) work();
      while (!lists_->all.empty()) {
        const auto connection = lists_->all.front().shared_from_this();
        lists_->all.pop_front();
        connection->close();
      }
      timer_.cancel();
    }
    std::lock_guard lock(inbox_mutex_);
    stopped_ = true;
    guard_.reset();
  });
  if (thread_.joinable())
    thread_.join();
  else
    context_.run();  // never started: the clean-up still has to run
  while (take_from(lists_->inbox)) {
  }
}

bool IoThread::moves() {
  if (asked_.exchange(true)) return false;
  asio::post(context_, [this] { asked_.store(false); });
  return true;
}

bool IoThread::before_stop(std::function<void()> work) {
  std::lock_guard lock(inbox_mutex_);
  if (stopped_) return false;
  before_stop_.push_back(std::move(work));
  return true;
}

void IoThread::drain() {
  asio::post(context_, [this] {
    Turn turn(*this);
    for (auto next = lists_->all.begin(); next != lists_->all.end();) {
      const auto connection = (next++)->shared_from_this();  // it may leave the list
      connection->drain();
    }
  });
}

// Without any allocation: an engine may be the caller.
void IoThread::push(const std::shared_ptr<Connection>& connection) noexcept {
  {
    std::lock_guard lock(inbox_mutex_);
    if (stopped_) return;
    connection->in_inbox_ = connection;
    lists_->inbox.push_back(*connection);
    if (posted_ || current == this) return;
    posted_ = true;
  }
  post_turn();
}

void IoThread::post_turn() noexcept {
  try {
    asio::post(context_, [this] { Turn turn(*this); });
  } catch (const std::exception& fault) {
    report_fault("a wake-up", fault.what());
    std::lock_guard lock(inbox_mutex_);
    posted_ = false;  // the next one tries again
  }
}

// The first connection of a list of such that wait to be served; null if there is none.
std::shared_ptr<Connection> IoThread::take_from(InboxList& list) {
  std::lock_guard lock(inbox_mutex_);
  if (list.empty()) return nullptr;
  Connection& connection = list.front();
  list.pop_front();
  return std::move(connection.in_inbox_);
}

// One batch only: a thread that answers without pause must not keep this one from its sockets and timers.
void IoThread::serve_inbox() noexcept {
  InboxList batch;
  {
    std::lock_guard lock(inbox_mutex_);
    posted_ = false;
    batch.swap(lists_->inbox);
  }
  while (const auto connection = take_from(batch)) connection->serve();
  {
    std::lock_guard lock(inbox_mutex_);
    if (lists_->inbox.empty() || posted_) return;
    posted_ = true;
  }
  post_turn();
}

void IoThread::begin_wait(Connection& connection, Wait wait) {
  const Wait before = connection.wait_;
  connection.wait_hook_.unlink();
  connection.wait_ = wait;
  if (wait != Wait::none) {
    connection.wait_began_ = Clock::now();
    lists_->waiting[static_cast<std::size_t>(wait)].push_back(connection);
    const Clock::time_point deadline = connection.wait_began_ + length_of(wait);
    if (deadline < timer_at_) arm_timer(deadline);
  }
  publish_oldest(before);
  if (wait != before) publish_oldest(wait);
}

milliseconds IoThread::length_of(Wait wait) const {
  const ServerOptions& options = shared_->options;
  switch (wait) {
    case Wait::idle:
      return options.idle_timeout;
    case Wait::first_head:
    case Wait::head:
      return options.header_timeout;
    case Wait::body:
      return options.body_timeout;
    case Wait::write:
      return options.write_timeout;
    case Wait::linger:
      return kLinger;
    case Wait::gone_check:
    case Wait::none:
      break;
  }
  return kGoneCheck;
}

void IoThread::publish_oldest(Wait wait) {
  if (wait == Wait::none) return;
  const auto& list = lists_->waiting[static_cast<std::size_t>(wait)];
  const Clock::time_point began = list.empty() ? Clock::time_point::max() : list.front().wait_began_;
  oldest_[static_cast<std::size_t>(wait)].store(began.time_since_epoch().count(), std::memory_order_relaxed);
}

void IoThread::close_oldest(Wait wait) {
  // Whoever has begun to wait after this moment may be the very newcomer that room is made for.
  asio::post(context_, [this, wait, now = Clock::now()] {
    Turn turn(*this);
    int looked_at = 0;
    for (Connection& connection : lists_->waiting[static_cast<std::size_t>(wait)]) {
      if (connection.wait_began_ >= now) return;
      // A request that lies unread in its socket is about to be served.
      if (wait == Wait::idle && connection.has_input() && ++looked_at < kMaxLookedAt) continue;
      const auto keep = connection.shared_from_this();
      connection.close();
      return;
    }
  });
}

void IoThread::arm_timer(Clock::time_point at) {
  timer_at_ = at;
  timer_.expires_at(at);
  timer_.async_wait([this](SysError error) {
    if (!error) on_timer();
  });
}

// The timer is only ever moved to an earlier time; when it fires it is set to the next deadline there is, if any.
void IoThread::on_timer() {
  Turn turn(*this);
  timer_at_ = Clock::time_point::max();
  const auto now = Clock::now();
  auto next = Clock::time_point::max();
  for (auto& list : lists_->waiting) {
    while (!list.empty()) {
      const auto connection = list.front().shared_from_this();
      const Wait wait = connection->wait_;
      const Clock::time_point deadline = connection->wait_began_ + length_of(wait);
      if (deadline > now) {
        next = std::min(next, deadline);
        break;
      }
      begin_wait(*connection, Wait::none);
      connection->on_deadline(wait);
    }
  }
  if (next < timer_at_) arm_timer(next);
}

}  // namespace xgen::http
