// PrepThread: a bounded queue of work that is too long for an I/O thread: templates and tokenising of large prompts.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace xgen {

class PrepThread {
 public:
  explicit PrepThread(std::size_t max_queued);
  // Runs what is queued, then ends.
  ~PrepThread();
  PrepThread(const PrepThread&) = delete;
  PrepThread& operator=(const PrepThread&) = delete;

  // False: the queue is full, and `work` will not run.
  bool post(std::function<void()> work);

 private:
  void run();

  const std::size_t max_queued_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace xgen
