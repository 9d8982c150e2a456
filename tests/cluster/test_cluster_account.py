"""The stand-in for AWS: each account begins empty."""

from inference_plane.cluster.aws import Account


def test_an_account_knows_nothing_of_the_one_before_it():
    for _ in range(2):
        with Account("eu-central-1") as account:
            account.make_role("nodes")  # refused where there is one
            assert len(account.client("ec2").describe_security_groups()["SecurityGroups"]) == 1
            account.make_network({"tag": "subnets"}, {"tag": "groups"})
            account.client("sqs").create_queue(QueueName="one")
            assert len(account.client("sqs").list_queues()["QueueUrls"]) == 1
