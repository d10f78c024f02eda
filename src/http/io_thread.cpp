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
    : shared_(std::move(shared)), timer_(context_), lists_(std::make_unique<Lists>()) {}

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
  connection.wait_hook_.unlink();
  connection.wait_ = wait;
  if (wait == Wait::none) return;
  const ServerOptions& options = shared_->options;
  const std::array<milliseconds, kWaits> length{
      options.idle_timeout, options.header_timeout, options.body_timeout, options.write_timeout, kLinger, kGoneCheck};
  connection.deadline_ = Clock::now() + length[static_cast<std::size_t>(wait)];
  lists_->waiting[static_cast<std::size_t>(wait)].push_back(connection);
  if (connection.deadline_ < timer_at_) arm_timer(connection.deadline_);
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
      if (connection.deadline_ > now) {
        next = std::min(next, connection.deadline_);
        break;
      }
      due.push_back(connection.shared_from_this());
    }
  }
  for (const auto& connection : due) connection->on_deadline();
  if (next < timer_at_) arm_timer(next);
}

}  // namespace xgen::http
