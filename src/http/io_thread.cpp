#include "http/io_thread.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/intrusive/list.hpp>

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

struct IoThread::Lists {
  using WaitList = intrusive::list<Connection, intrusive::member_hook<Connection, Hook, &Connection::wait_hook_>,
                                   intrusive::constant_time_size<false>>;
  using AllList = intrusive::list<Connection, intrusive::member_hook<Connection, Hook, &Connection::thread_hook_>,
                                  intrusive::constant_time_size<false>>;
  std::array<WaitList, kWaits> waiting;
  AllList all;
};

IoThread::IoThread(std::shared_ptr<ServerState> shared)
    : shared_(std::move(shared)), timer_(context_), lists_(std::make_unique<Lists>()) {
  for (auto& oldest : oldest_) oldest.store(Clock::time_point::max().time_since_epoch().count());
}

IoThread::~IoThread() = default;

void IoThread::add(Connection& connection) { lists_->all.push_back(connection); }

void IoThread::stop() {
  asio::post(context_, [this] {
    {
      Turn turn(*this);
      std::vector<std::shared_ptr<Connection>> all;
      for (Connection& connection : lists_->all) all.push_back(connection.shared_from_this());
      for (const auto& connection : all) connection->shut();
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
  std::lock_guard lock(inbox_mutex_);
  inbox_.clear();
}

void IoThread::drain() {
  asio::post(context_, [this] {
    Turn turn(*this);
    std::vector<std::shared_ptr<Connection>> all;
    for (Connection& connection : lists_->all) all.push_back(connection.shared_from_this());
    for (const auto& connection : all) connection->drain();
  });
}

void IoThread::push(std::shared_ptr<Connection> connection) {
  bool first = false;
  {
    std::lock_guard lock(inbox_mutex_);
    if (stopped_) return;
    first = inbox_.empty();
    inbox_.push_back(std::move(connection));
  }
  if (first && current != this) asio::post(context_, [this] { Turn turn(*this); });
}

// One batch only: a thread that answers without pause must not keep this one from its sockets and timers.
void IoThread::serve_inbox() {
  {
    std::lock_guard lock(inbox_mutex_);
    if (inbox_.empty()) return;
    serving_.swap(inbox_);
  }
  for (const auto& connection : serving_) connection->serve();
  serving_.clear();
  std::lock_guard lock(inbox_mutex_);
  if (!inbox_.empty()) asio::post(context_, [this] { Turn turn(*this); });
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
  asio::post(context_, [this, wait] {
    Turn turn(*this);
    int looked_at = 0;
    for (Connection& connection : lists_->waiting[static_cast<std::size_t>(wait)]) {
      // A request that lies unread in its socket is about to be served.
      if (wait == Wait::idle && connection.has_input() && ++looked_at < kMaxLookedAt) continue;
      const auto keep = connection.shared_from_this();
      connection.shut();
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
  std::vector<std::shared_ptr<Connection>> due;
  auto next = Clock::time_point::max();
  for (auto& list : lists_->waiting) {
    for (Connection& connection : list) {
      const Clock::time_point deadline = connection.wait_began_ + length_of(connection.wait_);
      if (deadline > now) {
        next = std::min(next, deadline);
        break;
      }
      due.push_back(connection.shared_from_this());
    }
  }
  for (const auto& connection : due) connection->on_deadline();
  if (next < timer_at_) arm_timer(next);
}

}  // namespace xgen::http
