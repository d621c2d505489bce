# A group of VMs on AWS that come with the agent. Make the file first:
#   guestagent cloud-init render --family apt ... --output user-data
terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

variable "image" {
  description = "AMI of Debian 12 or later, or Ubuntu 22.04 or later"
  type        = string
}

variable "subnets" {
  type = list(string)
}

resource "aws_launch_template" "web" {
  name_prefix   = "web-"
  image_id      = var.image
  instance_type = "c6i.large"
  # Read by every process on the VM: there is no lasting secret in it.
  user_data = filebase64("${path.module}/user-data")

  metadata_options {
    http_tokens = "required"
  }
}

resource "aws_autoscaling_group" "web" {
  min_size            = 2
  max_size            = 20
  vpc_zone_identifier = var.subnets

  launch_template {
    id      = aws_launch_template.web.id
    version = aws_launch_template.web.latest_version
  }

  # A few at a time: a bad config or version is seen before it is everywhere.
  instance_refresh {
    strategy = "Rolling"
    preferences {
      min_healthy_percentage = 90
    }
  }
}
