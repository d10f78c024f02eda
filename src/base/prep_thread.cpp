#include "base/prep_thread.h"

#include <exception>
#include <utility>

#include "base/log.h"

namespace xgen {

PrepThread::PrepThread(std::size_t max_queued) : max_queued_(max_queued), thread_([this] { run(); }) {}

PrepThread::~PrepThread() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

bool PrepThread::post(std::function<void()> work) {
  {
    std::lock_guard lock(mutex_);
    if (queue_.size() >= max_queued_) return false;
    queue_.push_back(std::move(work));
  }
  wake_.notify_one();
  return true;
}

void PrepThread::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    std::function<void()> work = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    try {
      work();
    } catch (const std::exception& fault) {
      // Its request ends with an error, because `work` goes without having answered.
      log::error("text", "fault while a prompt was prepared", {{"reason", fault.what()}});
    }
    work = nullptr;
    lock.lock();
  }
}

}  // namespace xgen
